"use strict";
// Map of embeddings: points and photographs on a canvas, nearest neighbours, search for a class.
// The data are in data.js, a script and no JSON file, since a page of file:// may not fetch one.

const data = window.FGSSL;
const count = data.fine.length;
const element = (id) => document.getElementById(id);
const canvas = element("canvas");
const context = canvas.getContext("2d");
const dark = matchMedia("(prefers-color-scheme: dark)");
const isRight = data.fine.map((label, i) => data.k > 0 && label >= 0 && data.fine[data.near[i * data.k]] === label);

const state = {
  map: Object.keys(data.maps)[0], // name of the layout
  colour: "fine", // fine, coarse or right
  photographs: true,
  lit: null, // labels of the lit classes, or null
  selected: -1,
  view: { x: 0, y: 0, scale: 1 }, // map coordinates of the centre, px a unit
  whole: 1, // scale at which the whole map is seen
};

// ---- colours --------------------------------------------------------------------------------------------------

const FEW = ["#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#9c6b4e", "#ff8ab7", "#97bbf5", "#9498a0"];

function colourOf(group) {
  if (state.colour === "right") return ["#2a9d5a", "#e2483d", "#8a929b"][group];
  if (group < 0) return "#8a929b"; // no label
  const names = state.colour === "fine" ? data.fineNames : data.coarseNames;
  if (names.length <= FEW.length) return FEW[group];
  const lightness = (dark.matches ? 62 : 46) + 9 * ((group % 3) - 1);
  return `hsl(${(group * 137.508) % 360} 65% ${lightness}%)`; // the golden angle keeps neighbours apart
}

function groupOf(i) {
  if (state.colour === "right") return data.fine[i] < 0 ? 2 : isRight[i] ? 0 : 1;
  return state.colour === "fine" ? data.fine[i] : data.coarse[i];
}

let groups = [];
let numbers = []; // colour of each point as a number, blue green red

const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });

// A colour of CSS as the number that a canvas keeps it as, without its opacity.
function numberOf(colour) {
  pen.fillStyle = colour;
  pen.fillRect(0, 0, 1, 1);
  const [red, green, blue] = pen.getImageData(0, 0, 1, 1).data;
  return (blue << 16) | (green << 8) | red;
}

function recolour() {
  groups = Array.from({ length: count }, (_, i) => groupOf(i));
  const known = new Map([...new Set(groups)].map((group) => [group, numberOf(colourOf(group))]));
  numbers = groups.map((group) => known.get(group));
}

// ---- photographs ------------------------------------------------------------------------------------------------

const sheets = { small: [], large: [] };

function sheet(kind, number) {
  if (!sheets[kind][number]) {
    const image = new Image();
    image.onload = ask;
    image.src = `${kind}-${number}.jpg`;
    sheets[kind][number] = image;
  }
  return sheets[kind][number];
}

// Sheet of an image and the place of its thumbnail in it.
function thumbnail(kind, i) {
  const { side, columns } = data.sheets[kind];
  const each = columns * columns;
  const place = i % each;
  const number = Math.floor(i / each);
  return { number, side, x: side * (place % columns), y: side * Math.floor(place / columns) };
}

function photo(i, px) {
  const { number, side, x, y } = thumbnail("large", i);
  const shown = document.createElement("div");
  const all = px * data.sheets.large.columns;
  shown.className = "photo";
  shown.setAttribute("role", "img");
  shown.setAttribute("aria-label", `photograph ${data.files[i]}`);
  shown.style.cssText = `width:${px}px;height:${px}px;background-image:url(large-${number}.jpg);` +
    `background-size:${all}px auto;background-position:${(-x * px) / side}px ${(-y * px) / side}px`;
  return shown;
}

function drawPhoto(i, x, y, px) {
  const sharp = px * ratio > data.sheets.small.side * 1.2;
  for (const kind of sharp ? ["large", "small"] : ["small"]) {
    const { number, side, x: left, y: top } = thumbnail(kind, i);
    const image = sheet(kind, number);
    if (image.complete && image.naturalWidth) {
      context.drawImage(image, left, top, side, side, x - px / 2, y - px / 2, px, px);
      return true;
    }
  }
  return false;
}

// ---- drawing ------------------------------------------------------------------------------------------------------

let ratio = 1, width = 0, height = 0, points = data.maps[state.map], asked = false;
let image, pixels; // of the points, a number each: opacity, blue, green, red

const screenX = (i) => (points[2 * i] - state.view.x) * state.view.scale + width / 2;
const screenY = (i) => (points[2 * i + 1] - state.view.y) * state.view.scale + height / 2;

function ask() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => { asked = false; draw(); });
}

function draw() {
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  const zoom = state.view.scale / state.whole;
  const radius = Math.round(Math.min(7, Math.max(2, 2.2 * Math.sqrt(zoom))));
  const px = Math.round(Math.min(110, 26 * Math.sqrt(zoom)));
  const seen = [];
  for (let i = 0; i < count; i++) {
    const x = screenX(i), y = screenY(i);
    if (x > -px && y > -px && x < width + px && y < height + px) seen.push(i);
  }
  const lit = (i) => !state.lit || state.lit.has(data.fine[i]);
  const front = seen.filter(lit);
  pixels.fill(0);
  if (state.lit) drawPoints(seen.filter((i) => !lit(i)), radius * ratio, 0.15);
  drawPoints(front, radius * ratio, 1);
  context.putImageData(image, 0, 0);
  if (state.photographs) drawPhotos(front, px);
  if (state.selected >= 0) drawSelection(px);
}

// Discs, written into the pixels: without a GPU this is many times faster than 10,000 calls of the canvas.
function drawPoints(some, radius, opacity) {
  const reach = Math.ceil(radius);
  const mask = []; // x, y and opacity of the pixels of a disc
  for (let y = -reach; y <= reach; y++) {
    for (let x = -reach; x <= reach; x++) {
      const covered = Math.min(1, Math.max(0, radius + 0.5 - Math.hypot(x, y)));
      if (covered) mask.push(x, y, Math.round(255 * covered * opacity));
    }
  }
  const [w, h] = [image.width, image.height];
  for (const i of some) {
    const left = Math.round(screenX(i) * ratio), top = Math.round(screenY(i) * ratio);
    for (let n = 0; n < mask.length; n += 3) {
      const x = left + mask[n], y = top + mask[n + 1];
      if (x < 0 || y < 0 || x >= w || y >= h) continue;
      const at = y * w + x;
      pixels[at] = over(numbers[i], mask[n + 2], pixels[at]);
    }
  }
}

// A colour of an opacity (0 to 255) over a pixel.
function over(colour, opacity, below) {
  if (opacity === 255) return colour | 0xff000000;
  const ground = below >>> 24;
  if (!ground) return colour | (opacity << 24);
  let mixed = Math.max(ground, opacity) << 24;
  for (const shift of [0, 8, 16]) {
    const under = (below >>> shift) & 255;
    mixed |= (under + ((((colour >>> shift) & 255) - under) * opacity) / 255) << shift;
  }
  return mixed;
}

// One photograph a cell of a grid that is fixed to the map, so that they stay while the map is moved.
function drawPhotos(some, px) {
  const cell = (1.25 * px) / state.view.scale;
  const taken = new Set();
  for (const i of some) {
    const key = Math.floor(points[2 * i] / cell) * 65536 + Math.floor(points[2 * i + 1] / cell);
    if (taken.has(key)) continue;
    taken.add(key);
    framed(i, px, colourOf(groups[i]), 2);
  }
}

function framed(i, px, colour, line) {
  const x = screenX(i), y = screenY(i);
  context.fillStyle = colour;
  context.fillRect(x - px / 2 - line, y - px / 2 - line, px + 2 * line, px + 2 * line);
  return drawPhoto(i, x, y, px);
}

function drawSelection(px) {
  const i = state.selected;
  context.lineWidth = 2;
  for (const [j] of neighbours(i)) {
    context.strokeStyle = agreement(i, j);
    context.beginPath();
    context.moveTo(screenX(i), screenY(i));
    context.lineTo(screenX(j), screenY(j));
    context.stroke();
  }
  for (const [j] of neighbours(i)) framed(j, Math.max(px, 36), agreement(i, j), 3);
  framed(i, Math.max(px, 52), dark.matches ? "#ffffff" : "#000000", 3);
}

const agreement = (i, j) => (data.fine[i] < 0 ? "#8a929b" : data.fine[i] === data.fine[j] ? "#2a9d5a" : "#e2483d");

function neighbours(i) {
  const found = [];
  for (let n = i * data.k; n < (i + 1) * data.k; n++) found.push([data.near[n], data.cosine[n] / 1000]);
  return found;
}

// ---- view ---------------------------------------------------------------------------------------------------------

// Shows the given points with a margin.
function fit(some) {
  let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
  for (const i of some) {
    left = Math.min(left, points[2 * i]); right = Math.max(right, points[2 * i]);
    top = Math.min(top, points[2 * i + 1]); bottom = Math.max(bottom, points[2 * i + 1]);
  }
  const room = Math.max(80, Math.min(width, height) * 0.12);
  const scale = Math.min((width - room) / Math.max(right - left, 1), (height - room) / Math.max(bottom - top, 1));
  state.view = { x: (left + right) / 2, y: (top + bottom) / 2, scale: Math.min(scale, state.whole * 12) };
  ask();
}

function showAll() {
  state.whole = Infinity; // no limit for the scale
  fit(Array(count).keys());
  state.whole = state.view.scale;
}

function resize() {
  const before = width;
  ratio = window.devicePixelRatio || 1;
  ({ clientWidth: width, clientHeight: height } = canvas);
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  image = new ImageData(Math.max(canvas.width, 1), Math.max(canvas.height, 1));
  pixels = new Uint32Array(image.data.buffer);
  if (!before) showAll();
  ask();
}

function zoomAt(factor, x = width / 2, y = height / 2) {
  const view = state.view;
  const scale = Math.min(state.whole * 200, Math.max(state.whole * 0.5, view.scale * factor));
  view.x += (x - width / 2) * (1 / view.scale - 1 / scale); // the place under the pointer stays
  view.y += (y - height / 2) * (1 / view.scale - 1 / scale);
  view.scale = scale;
  ask();
}

function pan(dx, dy) {
  state.view.x -= dx / state.view.scale;
  state.view.y -= dy / state.view.scale;
  ask();
}

function nearestPoint(x, y, reach) {
  let best = -1, least = reach * reach;
  for (let i = 0; i < count; i++) {
    if (state.lit && !state.lit.has(data.fine[i])) continue;
    const distance = (screenX(i) - x) ** 2 + (screenY(i) - y) ** 2;
    if (distance < least) [best, least] = [i, distance];
  }
  return best;
}

// ---- selection -----------------------------------------------------------------------------------------------------

const fineName = (i) => (data.fine[i] < 0 ? "no label" : data.fineNames[data.fine[i]]);
const coarseName = (i) => (data.coarse && data.coarse[i] >= 0 ? data.coarseNames[data.coarse[i]] : "");

function tag(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  made.className = className;
  return made;
}

function select(i) {
  state.selected = i;
  const about = document.createElement("div");
  about.append(tag("strong", fineName(i)), tag("div", coarseName(i), "soft"));
  about.append(tag("div", `row ${data.rows[i]}: ${data.files[i]}`, "soft"));
  const chosen = tag("div", "", "chosen");
  chosen.append(photo(i, 128), about);
  const list = tag("ul", "", "near");
  for (const [j, cosine] of neighbours(i)) {
    const known = data.fine[i] >= 0;
    const same = data.fine[i] === data.fine[j];
    const button = tag("button", "", known ? (same ? "is-right" : "is-wrong") : "");
    button.append(photo(j, 84), tag("div", `${known ? (same ? "✓ " : "✗ ") : ""}${cosine.toFixed(2)}`), fineName(j));
    button.addEventListener("click", () => { select(j); reveal(j); });
    const item = document.createElement("li");
    item.append(button);
    list.append(item);
  }
  element("chosen").replaceChildren(chosen, tag("h3", "Nearest neighbours by cosine similarity"), list);
  remember();
  ask();
}

function reveal(i) {
  const x = screenX(i), y = screenY(i);
  if (x < 20 || y < 20 || x > width - 20 || y > height - 20) [state.view.x, state.view.y] = [points[2 * i], points[2 * i + 1]];
}

function clear() {
  state.selected = -1;
  light(null);
  element("search").value = "";
}

// ---- classes ---------------------------------------------------------------------------------------------------------

const members = data.fineNames.map(() => []);
data.fine.forEach((label, i) => { if (label >= 0) members[label].push(i); });

// Lights the images of classes; null: of all.
function light(labels) {
  state.lit = labels && new Set(labels);
  listClasses(labels);
  remember();
  ask();
}

function listClasses(labels) {
  const shown = [...(labels || data.fineNames.keys())].filter((label) => members[label].length);
  if (state.colour === "right") shown.sort((a, b) => rightShare(a) - rightShare(b)); // the worst first
  element("heading").textContent = labels ? `${labels.length} of ${data.fineNames.length} classes` : "Classes";
  element("classes").replaceChildren(...shown.slice(0, 300).map((label) => {
    const right = Math.round(rightShare(label) * members[label].length);
    const item = row(colourOfClass(label), data.fineNames[label], `${right} of ${members[label].length} right`, () => {
      const again = state.lit && state.lit.size === 1 && state.lit.has(label);
      light(again ? null : [label]);
      if (!again) fit(members[label]);
    });
    item.firstChild.setAttribute("aria-pressed", Boolean(labels && labels.length === 1));
    return item;
  }));
}

const rightShare = (label) => members[label].filter((i) => isRight[i]).length / members[label].length;

// Colour of a class in the list: its own, that of its coarse class, or between right and wrong.
function colourOfClass(label) {
  if (state.colour === "right") return `color-mix(in srgb, ${colourOf(0)} ${100 * rightShare(label)}%, ${colourOf(1)})`;
  return colourOf(groups[members[label][0]]);
}

function row(dot, text, number, press) {
  const button = document.createElement("button");
  const mark = document.createElement("i");
  mark.style.background = dot;
  button.append(mark, tag("span", text), tag("small", number, "soft"));
  button.addEventListener("click", press);
  const item = document.createElement("li");
  item.append(button);
  return item;
}

function search(text) {
  const wanted = text.trim().toLowerCase();
  if (!wanted) return light(null);
  const exact = data.fineNames.findIndex((name) => name.toLowerCase() === wanted);
  const found = [...data.fineNames.keys()].filter((label) => data.fineNames[label].toLowerCase().includes(wanted));
  light(exact >= 0 ? [exact] : found);
}

function listPairs() {
  element("pairs").append(...data.pairs.map(([ours, theirs, images, same, confused]) =>
    row("var(--wrong)", `${data.fineNames[ours]} → ${data.fineNames[theirs]}`, `${confused} of ${images}`, () => {
      light([ours, theirs]);
      fit([...members[ours], ...members[theirs]]);
    })));
}

// ---- the address keeps what is shown, so that a link to it can be sent -------------------------------------------------

function remember() {
  const kept = new URLSearchParams({ colour: state.colour, map: state.map });
  if (state.selected >= 0) kept.set("row", data.rows[state.selected]);
  if (state.lit && state.lit.size <= 20) kept.set("classes", [...state.lit].join(" "));
  history.replaceState(null, "", `#${kept}`);
}

function recall() {
  const kept = new URLSearchParams(location.hash.slice(1));
  if ([...element("colour").options].some((option) => option.value === kept.get("colour"))) state.colour = kept.get("colour");
  if (kept.get("map") in data.maps) setMap(kept.get("map"));
  element("colour").value = state.colour;
  element("map").value = state.map;
  recolour();
  const labels = (kept.get("classes") || "").split(" ").filter(Boolean).map(Number);
  const i = kept.has("row") ? data.rows.indexOf(Number(kept.get("row"))) : -1;
  light(labels.length ? labels : null);
  if (i >= 0) select(i);
}

function setMap(name) {
  state.map = name;
  points = data.maps[name];
}

// ---- controls ----------------------------------------------------------------------------------------------------------

function setUp() {
  const choices = [["fine", "class"], ...(data.coarse ? [["coarse", "coarse class"]] : []), ["right", "right or wrong"]];
  element("colour").append(...choices.map(([value, text]) => new Option(text, value)));
  element("map").append(...Object.keys(data.maps).map((name) => new Option(name, name)));
  element("maps").hidden = Object.keys(data.maps).length < 2;
  element("names").append(...data.fineNames.map((name) => new Option(name, name)));
  element("colour").onchange = (event) => { state.colour = event.target.value; recolour(); light(state.lit && [...state.lit]); };
  element("map").onchange = (event) => { setMap(event.target.value); showAll(); remember(); };
  element("photographs").onchange = (event) => { state.photographs = event.target.checked; ask(); };
  element("search").oninput = (event) => search(event.target.value);
  element("search").onkeydown = (event) => {
    if (event.key === "Enter" && state.lit && state.lit.size) fit([...state.lit].flatMap((label) => members[label]));
    if (event.key === "Escape") clear();
  };
  element("in").onclick = () => zoomAt(1.5);
  element("out").onclick = () => zoomAt(1 / 1.5);
  element("all").onclick = () => { clear(); showAll(); };
  dark.onchange = () => { recolour(); listClasses(state.lit && [...state.lit]); ask(); };
  new ResizeObserver(resize).observe(canvas);
  canvas.onkeydown = onKey;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomAt(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), event.offsetX, event.offsetY);
  }, { passive: false });
  listPairs();
}

function onKey(event) {
  const step = 60;
  const keys = {
    ArrowLeft: () => pan(step, 0), ArrowRight: () => pan(-step, 0), ArrowUp: () => pan(0, step), ArrowDown: () => pan(0, -step),
    "+": () => zoomAt(1.3), "=": () => zoomAt(1.3), "-": () => zoomAt(1 / 1.3), 0: showAll, Escape: clear,
    Enter: () => { const i = nearestPoint(width / 2, height / 2, Infinity); if (i >= 0) select(i); },
    n: () => {
      if (state.selected < 0 || data.fine[state.selected] < 0) return;
      const some = members[data.fine[state.selected]];
      const next = some[(some.indexOf(state.selected) + 1) % some.length];
      select(next);
      reveal(next);
    },
  };
  const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  act();
}

// Pointers: one moves the map, two zoom it, one that has not moved selects.
const fingers = new Map();
let moved = false;

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  if (!fingers.size) moved = false;
  fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
});

canvas.addEventListener("pointermove", (event) => {
  const here = [event.offsetX, event.offsetY];
  const before = fingers.get(event.pointerId);
  if (!before) return hover(...here);
  const [dx, dy] = [here[0] - before[0], here[1] - before[1]];
  if (Math.hypot(dx, dy) < 4 && !moved) return;
  moved = true;
  element("hover").hidden = true;
  const [other] = [...fingers.entries()].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
  fingers.set(event.pointerId, here);
  if (!other) return pan(dx, dy);
  const apart = (place) => Math.hypot(place[0] - other[0], place[1] - other[1]);
  zoomAt(apart(here) / Math.max(apart(before), 1), (here[0] + other[0]) / 2, (here[1] + other[1]) / 2);
  pan(dx / 2, dy / 2);
});

function release(event) {
  const place = fingers.get(event.pointerId);
  fingers.delete(event.pointerId);
  if (!place || moved || event.type !== "pointerup") return;
  const i = nearestPoint(...place, event.pointerType === "touch" ? 30 : 18);
  if (i >= 0) select(i);
}
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);
canvas.addEventListener("pointerleave", () => { element("hover").hidden = true; });

function hover(x, y) {
  const box = element("hover");
  const i = nearestPoint(x, y, 14);
  box.hidden = i < 0;
  if (i < 0 || box.dataset.shown === String(i)) return;
  box.dataset.shown = i;
  box.replaceChildren(photo(i, 128), tag("div", fineName(i)));
  box.style.left = `${Math.min(screenX(i) + 12, width - 170)}px`;
  box.style.top = `${Math.max(4, Math.min(screenY(i) + 12, height - 190))}px`;
}

setUp();
resize();
recall();
const loaded = Array.from({ length: Math.ceil(count / data.sheets.small.columns ** 2) }, (_, n) => sheet("small", n).decode());
window.explorer = { state, draw, screen: (i) => [screenX(i), screenY(i)], zoomAt, pan, fit, ready: Promise.all(loaded).then(draw) };

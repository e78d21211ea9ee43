"use strict";
// Sorts a table by the column whose heading is pressed; cells without a number come last.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.parentElement;
    const body = heading.closest("table").tBodies[0];
    const words = heading.classList.contains("words");
    const [first, second] = words ? ["ascending", "descending"] : ["descending", "ascending"];
    const order = heading.getAttribute("aria-sort") === first ? second : first;
    const sign = order === "ascending" ? 1 : -1;
    const place = [...heading.parentElement.children].indexOf(heading);
    const text = (row) => row.cells[place].textContent;
    const rows = [...body.rows].sort((a, b) => {
      if (words) return sign * text(a).localeCompare(text(b));
      const [left, right] = [parseFloat(text(a)), parseFloat(text(b))];
      return Number.isNaN(left) - Number.isNaN(right) || sign * (left - right) || 0;
    });
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order);
    body.append(...rows);
  });
}

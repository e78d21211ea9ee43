"""Frame time of the explorer of fgssl report: 10,000 points beside 1,000, in a headless Chromium.

    python tests/benchmarks/bench_explorer.py [--keep FOLDER]

A frame is everything that is drawn when the map is moved: points, photographs with their frames, the neighbours of the
selected image. It is drawn without a GPU. A display at 60 Hz leaves 16.7 ms.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from fgssl.evaluation.store import Stored
from fgssl.report import explorer
from fgssl.report.browser import ASSETS, PAGE, render
from tests.chromium import Chromium

CLASSES = 200
FRAMES = """(() => {
  const times = [];
  for (let n = 0; n < 120; n++) {
    explorer.pan(3 * Math.cos(n), 3 * Math.sin(n));
    const begin = performance.now();
    explorer.draw();
    times.push(performance.now() - begin);
  }
  times.sort((a, b) => a - b);
  return [times[60], times[114]];
})()"""
REAL = """new Promise((done) => {
  let n = 0, begin = performance.now();
  const frame = () => {
    explorer.pan(3 * Math.cos(n), 3 * Math.sin(n));
    if (++n > 60) return done((performance.now() - begin) / 60);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
})"""


def photograph(position: int) -> Image.Image:
    """Noise of the class's colour."""
    rng = np.random.default_rng(position)
    colour = np.random.default_rng(position % CLASSES).integers(40, 215, 3)
    return Image.fromarray((colour + rng.integers(-40, 40, (128, 128, 3))).astype(np.uint8))


def write(out: Path, count: int) -> Path:
    """An explorer of ``count`` images in 200 clusters; the layout is the first two features, to save the t-SNE."""
    rng = np.random.default_rng(0)
    fine = np.arange(count) % CLASSES
    centres = rng.normal(size=(CLASSES, 32))
    features = (centres[fine] + 0.25 * rng.normal(size=(count, 32))).astype(np.float32)
    names = [f"class number {label}" for label in range(CLASSES)]
    about = {"dataset": "made", "part": "test", "fine_names": names, "coarse_names": ["even", "odd"]}
    stored = Stored(features, fine, fine % 2, np.arange(count), fine.astype(str), about)
    explorer.ways = lambda: {"first two features": "first"}
    explorer.layout = lambda features_NF, way, seed: features_NF[:, :2]
    folder = out / "explorers" / str(count)
    explorer.write_explorer(stored, photograph, folder, points=0)
    (folder / "index.html").write_text(render("explorer.html", title=f"{count} images", note=""))
    (out / "assets").mkdir(exist_ok=True)
    for name in ASSETS:
        (out / "assets" / name).write_bytes((PAGE / name).read_bytes())
    return folder / "index.html"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", metavar="FOLDER", help="folder for the pages and a screenshot; default: removed")
    kept = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as temporary, Chromium(Path(temporary) / "profile") as browser:
        out = Path(kept or temporary) / "bench_explorer"
        out.mkdir(parents=True, exist_ok=True)
        found = {}
        print("| points | zoom | photographs | drawing, median ms | 95 % | from frame to frame, ms |")
        print("|---|---|---|---|---|---|")
        for count in (1_000, 10_000):
            page = write(out, count)
            for zoom in (1.0, 4.0):
                for photographs in ("true", "false"):
                    browser.open(page, width=1400, height=900)
                    browser.run("explorer.ready")
                    browser.run(f"explorer.state.photographs = {photographs}, explorer.zoomAt({zoom}), select(5)")
                    median, slow = browser.run(FRAMES)
                    real = browser.run(REAL)
                    found[count, zoom, photographs] = real
                    print(f"| {count:,} | {zoom:g} | {photographs} | {median:.1f} | {slow:.1f} | {real:.1f} |")
            if kept:
                browser.screenshot(out / f"{count}.png")
        ratios = [found[10_000, *key] / found[1_000, *key] for key in {key[1:] for key in found}]
        print(f"From frame to frame, 10,000 points take {min(ratios):.1f} to {max(ratios):.1f} times as long as 1,000.")


if __name__ == "__main__":
    main()

"""Folders of pictures for the quality table, out of what anybody can fetch; `ganserve datasets add` registers them then.

.venv/bin/python bench/quality_sets.py tiles stone_soup-0.28.0/crawl-ref/source/rltiles FOLDER      (apt-get source crawl)
.venv/bin/python bench/quality_sets.py photographs FOLDER PICTURE...       (wallpapers of Debian's packages)
.venv/bin/python bench/quality_sets.py arrays FILE.npz FOLDER               (drawn avatars or emoji: images, and source where paired)
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

TILE = 32
CLASSES = {"dngn": "dungeon", "item": "item", "mon": "monster"}
MAX_PIXELS = 2_000_000
# those with texture: flat skies teach an enlarging network nothing
LOMIRI = (
    "Dragonfly_by_Bolly Kleiber_by_Lukas_Baubkus Picture_0B_by_freespace Picture_1A_by_freespace Wine_by_Jakkub_Mede"
    " aitzgorri_by_Aitzol_Berasategi friends_by_Aitzol_Berasategi life_by_Aitzol_Berasategi picosdeeuropa_by_Aitzol_Berasategi"
    " seeding_by_Clements_Engelhardt"
)
MATE = "Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops TwoWings Wood YellowFlower"
PLASMA = "BytheWater ColorfulCups EveningGlow FallenLeaf Grey OneStandsOut Path"


def tiles(source: Path, folder: Path) -> int:
    """Every picture of 32 x 32 below the three folders, laid over black, in a folder for each."""
    count = 0
    for below, name in CLASSES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for path in sorted((source / below).rglob("[!.]*.png")):
            with Image.open(path) as picture:
                if picture.size != (TILE, TILE):
                    continue
                drawn = picture.convert("RGBA")
            flat = Image.alpha_composite(Image.new("RGBA", drawn.size, (0, 0, 0, 255)), drawn).convert("RGB")
            flat.save(folder / name / ("_".join(path.relative_to(source).with_suffix("").parts) + ".png"))
            count += 1
    return count


def photographs(share: Path, folder: Path) -> int:
    """Halved once, for the noise of the sensor, and until there are less than two megapixels."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: share / "backgrounds" / f"{name}.jpg" for name in LOMIRI.split()}
    found |= {name: share / "backgrounds" / "mate" / "nature" / f"{name}.jpg" for name in MATE.split()}
    found |= {name: share / "wallpapers" / name / "contents" / "images" / "2560x1600.jpg" for name in PLASMA.split()}
    for name, path in found.items():
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
        while True:
            picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS)
            if picture.width * picture.height <= MAX_PIXELS:
                break
        picture.save(folder / f"{name}.png")
    return len(found)


def arrays(file: Path, folder: Path) -> int:
    """`images` (N, H, W, 3) as PNG; where there is `source` too, both as the folders of a set of pairs."""
    found = np.load(file)
    parts = {"target": found["images"], "source": found["source"]} if "source" in found else {"": found["images"]}
    for name, pictures in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(pictures):
            Image.fromarray(pixels).save(folder / name / f"{number:05d}.png", compress_level=1)
    return len(found["images"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["tiles", "photographs", "arrays"])
    parser.add_argument("source", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    count = {"tiles": tiles, "photographs": photographs, "arrays": arrays}[given.kind](given.source, given.folder)
    print(f"{count:,} pictures in {given.folder}")


if __name__ == "__main__":
    main()

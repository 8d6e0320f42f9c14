"""Makes what `deploy/models` is trained on, beside the demo's assets: `models.py TARGET`, a few minutes on two cores.

After it, TARGET holds also `smollm2/` and `definitions.csv`, `glosses.csv`, `vit/` and `garments.parquet`, `dual/` and
`captions.parquet`. What is there already is left alone. README.md beside this file says where things come from.
"""

import sys
import tempfile
from pathlib import Path

import images
import prepare
import texts
import transformers
from fetch import run_script

MAKERS = {
    "smollm2": lambda scratch, target, _: texts.make_smollm2(scratch, target),
    "definitions.csv": lambda scratch, target, _: texts.make_definitions(scratch, target),
    "glosses.csv": lambda scratch, target, _: texts.make_glosses(scratch, target),
    "vit": lambda scratch, target, _: images.make_vit(scratch, target),
    "garments.parquet": lambda scratch, target, _: images.make_garments(scratch, target),
    "dual": lambda scratch, target, assets: images.make_dual(assets / "vit", assets / "minilm", target),
    "captions.parquet": lambda scratch, target, _: images.make_captions(scratch, target),
}


def make(target: Path) -> None:
    """Brings `target` to the state that the module describes. Raises PrepareError."""
    prepare.prepare(target)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix=".models-", dir=target) as scratch:
        for name, maker in MAKERS.items():
            if not (target / name).exists():
                staged = Path(scratch, f"staged-{name}")  # renamed when it is whole
                maker(Path(scratch), staged, target)
                staged.rename(target / name)
                print(f"{target / name}: made", flush=True)


if __name__ == "__main__":
    sys.exit(run_script(make, sys.argv))

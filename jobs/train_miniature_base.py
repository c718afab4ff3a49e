"""Make the base model of the miniature world: `python jobs/train_miniature_base.py influray/miniature/base`.

The shipped one took four minutes on one core. For the large world of configs/miniature_large.yaml:
`python jobs/train_miniature_base.py runs/miniature-large/base --large --device cuda`.
"""

import argparse
import logging

import torch

from influray.miniature.pretraining import LARGE_RECIPE, Recipe, train_base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where model, tokenizer and recipe.json go")
    parser.add_argument("--large", action="store_true", help="the 10 M parameter model of the large world")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of torch on CPU; part of what makes bytes repeat")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    print(train_base(options.folder, LARGE_RECIPE if options.large else Recipe(), options.device))


if __name__ == "__main__":
    main()

"""Make a small tokenizer and base model from a pool: python jobs/train_local_base.py FOLDER --root DATA --pool pool

What configs/real_pool.yaml starts from: a byte-level BPE of 4,096 and a Llama of about a million parameters, trained
for a few hundred steps, about ten minutes on one core.
"""

import argparse
import logging

import torch

from influray.miniature.local_base import LocalRecipe, train_local_base

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where the model goes")
    parser.add_argument("--root", default=".", help="where relative pool entries start")
    parser.add_argument("--pool", nargs="+", default=["pool"], help="files or folders, as data.pool of a config")
    parser.add_argument("--steps", type=int, default=LocalRecipe().steps)
    parser.add_argument("--seed", type=int, default=LocalRecipe().seed)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    recipe = LocalRecipe(seed=arguments.seed, steps=arguments.steps)
    print(train_local_base(arguments.pool, arguments.root, arguments.folder, recipe))

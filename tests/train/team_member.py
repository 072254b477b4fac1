"""A process of a team, or one alone: `team_member.py DATASETS OUT STEPS CONFIG...` trains each config, and the leader saves its state."""

import sys
from pathlib import Path

import torch

from training import datasets
from training.contract import TrainConfig
from training.preparation import Places, prepare
from training.team import Team


def main(datasets_folder: str, out: str, steps: str, *configs: str) -> None:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    team = Team.gather(cpu)
    for number, text in enumerate(configs):
        config = TrainConfig.model_validate_json(text)
        places = Places(Path(datasets_folder), (), Path("weights"))
        training = prepare(config, datasets.load(config.dataset, places.datasets), places, cpu, team=team).training
        for _ in range(int(steps)):
            training.step()
        told = training._measure(training.phase).losses
        if team.leads:
            torch.save({"state": training.state_dict()["matches"], "told": told}, Path(out) / f"{number}.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A process of a team, or one alone: `team_member.py DATASETS OUT STEPS CONFIG...` trains each config, and the leader saves its state."""

import sys
from pathlib import Path

import torch
from torch import nn

from training import datasets
from training.contract import TrainConfig
from training.preparation import Places, prepare
from training.team import Team


def main(datasets_folder: str, out: str, steps: str, *configs: str) -> None:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    team = Team.gather(cpu)
    norm = norm_in_half_precision(team)
    if team.leads:
        torch.save(norm, Path(out) / "norm.pt")
    for number, text in enumerate(configs):
        config = TrainConfig.model_validate_json(text)
        places = Places(Path(datasets_folder), (), Path("weights"))
        training = prepare(config, datasets.load(config.dataset, places.datasets), places, cpu, team=team).training
        for _ in range(int(steps)):
            training.step()
        told = training._measure(training.phase).losses
        if team.leads:
            torch.save({"state": training.state_dict()["matches"], "told": told}, Path(out) / f"{number}.pt")


def norm_in_half_precision(team: Team) -> dict[str, object]:
    """What a batch norm of the whole team makes of bfloat16 images, each member's own."""
    norm = nn.BatchNorm2d(3)
    team.synchronise_norms(norm)
    with torch.autocast("cpu", torch.bfloat16):
        output = norm(torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(team.rank)).bfloat16())
    means = team.average(norm.running_mean)
    team.separate_norms(norm)
    return {"output": output.detach(), "means of all": means, "is plain": type(norm) is nn.BatchNorm2d, **norm.state_dict()}


if __name__ == "__main__":
    main(*sys.argv[1:])

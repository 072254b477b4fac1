"""Bodies and queries of /datasets."""

from pydantic import BaseModel, ConfigDict, Field

from training.contract import DatasetCard
from training.files.imports import DatasetOptions, ImportState


class UploadOptions(DatasetOptions):
    """The same options, from the words of a query."""

    model_config = ConfigDict(strict=False)

    def options(self) -> DatasetOptions:
        return DatasetOptions(**self.model_dump())


class DatasetProgress(BaseModel):
    """How far an import is."""

    num_files: int
    num_done: int


class Dataset(BaseModel):
    """A set that can be trained on, or what becomes of an archive that was sent."""

    name: str
    state: ImportState
    progress: DatasetProgress | None = Field(description="Of an import, once its archive is looked through.")
    message: str = Field(description="Why an import failed.")
    built_in: bool
    card: DatasetCard | None = Field(description="Null unless ready.")
    used_by: list[str] = Field(description="Jobs on it that are queued, running or paused.")


class BrokenDataset(BaseModel):
    """A set whose files are not what its card says."""

    name: str
    reason: str


class Datasets(BaseModel):
    """By name."""

    datasets: list[Dataset]
    broken: list[BrokenDataset]

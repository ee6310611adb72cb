"""Artifact locations in an MLflow database after its store has been moved or copied.

MLflow keeps absolute locations, of experiments and of runs. They are changed through MLflow's own tables.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = "mlartifacts"
"""Name of the folder of artifacts in a store."""


def redirect(client: "MlflowClient", uri: str, location: str, *, is_own: bool) -> None:
    """Update all artifact locations of a store in a database to where the store is now.

    Args:
        client: of the database.
        uri: the database.
        location: URI of the store's folder of artifacts.
        is_own: whether it is the store's own database, whose locations all belong to this store. In a database that
            several stores share, only a location whose folder is gone is changed.
    """
    from mlflow.entities import ViewType

    known = {each.artifact_location for each in client.search_experiments(ViewType.ALL)}
    moved = [old for old in known - {location} if _is_of_store(old) and (is_own or not _path(old).is_dir())]
    if moved:
        _replace(uri, moved, location)


def _replace(uri: str, moved: Sequence[str], location: str) -> None:
    from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlRun
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.orm import Session

    with Session(SqlAlchemyStore(uri, location).engine) as session, session.begin():
        for old in moved:
            for column in (SqlExperiment.artifact_location, SqlRun.artifact_uri):
                for row in session.query(column.class_).filter(column.startswith(old, autoescape=True)):
                    rest = getattr(row, column.key).removeprefix(old)
                    if not rest or rest.startswith("/"):
                        setattr(row, column.key, f"{location}{rest}")


def _is_of_store(location: str) -> bool:
    return urlparse(location).scheme in ("", "file") and location.endswith(f"/{ARTIFACTS}")


def _path(location: str) -> Path:
    return Path(unquote(urlparse(location).path))

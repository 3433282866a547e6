"""Optuna's relational storage, for a study that has one writer."""

import json
from functools import lru_cache
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial
from sqlalchemy import insert
from sqlalchemy.orm import Session

CONNECT_SECONDS = 10
"""How long a PostgreSQL server may take to answer."""


class OneWriterStorage(RDBStorage):
    """Writes a new trial's parameters and attributes together.

    Optuna asks the database twice for each parameter and once for each attribute whether it may write them, since
    others may write the same trial. With 64 parameters that is most of a trial's cost, and a study with one writer
    needs none of it. Should Optuna rename the methods below, its own slower ones are used.
    """

    def __init__(self, url: str) -> None:
        """Connect.

        Args:
            url: SQLAlchemy URL of the database; its tables are made where they are missing.
        """
        options: dict[str, object] = {"pool_pre_ping": True}  # a server that was restarted is connected to again
        if url.startswith("postgresql"):
            options["connect_args"] = {"connect_timeout": CONNECT_SECONDS}
        self._rows: dict[type[models.BaseModel], list[dict[str, Any]]] | None = None
        super().__init__(url, engine_kwargs=options)

    def _get_prepared_new_trial(
        self, study_id: int, template_trial: FrozenTrial | None, session: Session
    ) -> models.TrialModel:
        self._rows = {}
        try:
            trial = super()._get_prepared_new_trial(study_id, template_trial, session)
            for table, rows in self._rows.items():
                session.execute(insert(table), rows)
        finally:
            self._rows = None
        return trial

    def _set_trial_param_without_commit(
        self,
        session: Session,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        if self._rows is None:
            super()._set_trial_param_without_commit(
                session, trial_id, param_name, param_value_internal, distribution, previous_distribution
            )
            return
        row = {
            "trial_id": trial_id,
            "param_name": param_name,
            "param_value": param_value_internal,
            "distribution_json": _as_json(distribution),
        }
        self._rows.setdefault(models.TrialParamModel, []).append(row)

    def _set_trial_attr_without_commit(
        self,
        session: Session,
        model_cls: type[models.TrialUserAttributeModel | models.TrialSystemAttributeModel],
        trial_id: int,
        key: str,
        value: Any,
    ) -> None:
        if self._rows is None:
            super()._set_trial_attr_without_commit(session, model_cls, trial_id, key, value)
            return
        row = {"trial_id": trial_id, "key": key, "value_json": json.dumps(value)}
        self._rows.setdefault(model_cls, []).append(row)


@lru_cache(maxsize=1024)
def _as_json(distribution: BaseDistribution) -> str:
    return distribution_to_json(distribution)

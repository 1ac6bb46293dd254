"""The ``influence`` section of a config: what it means, and whether it can be."""

import dataclasses
from typing import Any

from ideal_jax import config as config_lib
from ideal_jax.influence import Options
from ideal_jax.influence.estimators import check_inversion, check_name


def check_influence(config: Any) -> None:
    """Whether what the section and ``verify.estimators`` ask for exists, after ``config.check``.

    Raises:
      UserError: an unknown estimator, rule of inversion, replay or value.
    """
    options = config.influence
    check_name(options.estimator)
    for name in config_lib.names(config.verify.estimators):
        check_name(name, "verify.estimators")
    check_inversion(options.estimator, options.inversion)
    config_lib.choice("influence.replay", options.replay, ("forward", "reverse"))
    influence_options(config)


def influence_options(config: Any) -> Options:
    """The section's choices about curvature."""
    fields = [field.name for field in dataclasses.fields(Options)]
    return Options(**{name: config.influence[name] for name in fields})

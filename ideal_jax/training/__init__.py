"""Training: loss, optimizer, state, step, loop, checkpoints."""

from ideal_jax.training.log import check_tensorboard as check_tensorboard
from ideal_jax.training.loop import TrainResult as TrainResult
from ideal_jax.training.loop import start_state as start_state
from ideal_jax.training.loop import step_program as step_program
from ideal_jax.training.loop import train as train
from ideal_jax.training.optimizer import adamw as adamw
from ideal_jax.training.optimizer import schedule as schedule
from ideal_jax.training.optimizer import second_moment as second_moment
from ideal_jax.training.step import TrainState as TrainState
from ideal_jax.training.step import init_state as init_state
from ideal_jax.training.step import make_train_step as make_train_step
from ideal_jax.training.trace import traced_steps as traced_steps

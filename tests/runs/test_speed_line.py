"""The line that a training ends with."""

from ideal_jax.runs.summary import speed_line

SPEED = {
    "step_seconds": 0.512,
    "positions_per_second": 65536.4,
    "tokens_per_second": 61234.0,
    "supervised_tokens_per_second": 20111.0,
    "flops_per_step": 1.709e15,
    "peak_flops": 7.912e15,
    "peak_bytes": 60 * 2**30,
    "goodput": 0.75,
    "seconds": {"all": 200.0, "step": 150.0, "compile": 21.0, "data": 0.5, "checkpoint": 12.0},
}


def test_everything_known():
    assert speed_line({**SPEED, "mfu": 0.4321}) == (
        "512 ms a step, 65,536 tokens/s (61,234 non-padding, 20,111 supervised), "
        "MFU 43.2% (1.71 PFLOP a step, peak 7.91 PFLOP/s), compiled in 21.0 s, "
        "peak memory 60.00 GiB, goodput 75% (compile 10%, checkpoint 6%)"
    )


def test_what_is_unknown_is_left_out():
    known = {**SPEED, "peak_flops": None, "peak_bytes": None, "seconds": {"all": 1.0, "compile": 0}}
    line = speed_line({**known, "goodput": 1.0})
    assert "MFU" not in line
    assert "memory" not in line
    assert line.endswith("compiled in 0 ms, goodput 100%")

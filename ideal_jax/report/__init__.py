"""The report: one self-contained HTML page from the files of a work directory."""

from ideal_jax.report.page import write_report as write_report

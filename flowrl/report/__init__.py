"""The report of a run: one HTML file that needs no network, and contact sheets of samples."""

from flowrl.report.page import write
from flowrl.report.sheet import contact_sheet

__all__ = ["contact_sheet", "write"]

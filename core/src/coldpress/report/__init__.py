"""Progress while a run lasts, and the report when it is done."""

from coldpress.report.manifest import manifest_of
from coldpress.report.progress import SILENT, Progress
from coldpress.report.report import Report, read_report, report_of

__all__ = ["SILENT", "Progress", "Report", "manifest_of", "read_report", "report_of"]

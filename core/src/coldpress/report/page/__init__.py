"""`report.html`: a report as one page that opens offline and needs no script.

place    the block and the kind of a layer, by its name
svg      marks of a plot, as XML; scales with their ticks
figures  the plots
histograms  weights and inputs of the worst layers
sections verdict, large numbers, tables
page     all of it, by the template page.html
folder   the page of a folder that a run wrote, and what evaluations add
compared the page of two checkpoints, by the template difference.html
"""

from coldpress.report.page.page import PAGE, page_of

__all__ = ["PAGE", "page_of"]

"""Pictures: functions take results and axes, draw, and return the axes; nothing is ever run or shown here.

Imported by name (`from dynamics import plotting`), so that `import dynamics` does not load matplotlib.
"""

from dynamics.plotting.curves import COLORS as COLORS
from dynamics.plotting.curves import band as band
from dynamics.plotting.curves import ensemble as ensemble
from dynamics.plotting.curves import simulated as simulated
from dynamics.plotting.curves import theory as theory
from dynamics.plotting.page import label as label
from dynamics.plotting.page import legend as legend
from dynamics.plotting.page import page as page
from dynamics.plotting.page import save as save

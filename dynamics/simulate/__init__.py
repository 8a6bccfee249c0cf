"""The two verbs numerically."""

from dynamics.simulate.descent import descent as descent
from dynamics.simulate.flow import flow as flow
from dynamics.simulate.segmented_flow import segmented_flow as segmented_flow

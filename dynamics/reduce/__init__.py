"""Exact reductions: smaller problems that move exactly as the one given."""

from dynamics.reduce.base import Reduction as Reduction
from dynamics.reduce.base import view as view
from dynamics.reduce.choice import choose as choose
from dynamics.reduce.classes import ClassMeans as ClassMeans
from dynamics.reduce.classes import Collapsed as Collapsed
from dynamics.reduce.classes import class_means as class_means
from dynamics.reduce.classes import collapsed as collapsed
from dynamics.reduce.decayed import kept_in_descent as kept_in_descent
from dynamics.reduce.decayed import kept_in_flow as kept_in_flow
from dynamics.reduce.spans import Composed as Composed
from dynamics.reduce.spans import Span as Span
from dynamics.reduce.spans import span as span
from dynamics.reduce.spans import spanned as spanned

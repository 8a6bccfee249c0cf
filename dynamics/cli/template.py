"""The sweep file that `dynamics new` writes: it runs as it is, and shows every key."""

TEMPLATE = """\
# A sweep: every combination of the axes below is a member. Run it with: dynamics run {name}.toml
# Any value can be replaced there: --set start.scale=0.1 --set sweep.2.count=1000
name = "{name}"                        # of the run folder: A-Z a-z 0-9 . _ -
# title = "Collapse under three learning rates"
seed = 0                               # of every random number
precision = "float64"                  # or "float32"

[problem]
num_classes = 4
per_class = 5                          # or one of the following
# sizes = [8, 6, 4, 2]
# sizes = {{ kind = "long_tailed", largest = 20, imbalance = 10.0 }}
# labels = [0, 0, 1, 1, 2, 3]
loss = {{ kind = "Unhinged" }}           # any of dynamics.losses, such as "CrossEntropy"; its arguments are keys
decay = {{ features = 0.01, prototypes = 0.05, biases = 0.0 }}
# bias = true                          # trained; "slaved": always the best ones (squared error)
# anchored = true                      # prototypes and biases stay where they start
# normalize = true                     # the loss sees features of unit norm
# adjusted = 0.1                       # with normalize, anchored and a linear loss
# sample_weights = [...]               # one a sample, their mean is one

# a network instead, of dynamics.nets, with rates = {{ equal = 1.0 }} and start = {{ kind = "weights", scale = 1.0 }}:
# net = {{ kind = "two_layer", width = 20 }}
# data = {{ kind = "separable", samples = 10, dim = 3, gap = 0.3 }}
# loss = {{ kind = "Exponential" }}        # and no other key but decay, a number

[start]
kind = "gaussian"                      # any start of dynamics.initial, also "balanced"
dim = 16
scale = 0.3
# prototypes = "simplex_etf"           # instead of random ones
# prototype_scale = 1.0

[rates]
schedule = {{ kind = "Cosine", value = 0.5, horizon = 20.0 }}   # of the weights: a number, or any of dynamics.schedules
ratio = 2.0                            # features move so many times as fast
# equal = 0.5                          # or instead of both: one schedule for all
# features = 1.0                       # or: a schedule each
# weights = 0.5
# rescaled = true                      # a feature's step is multiplied by its norm

[motion]
verb = "flow"                          # or "descent"
by = "simulation"                      # or "formula", where there is one
times = {{ start = 0.0, stop = 20.0, num = 21 }}   # or a list; spacing = "linear" or "geometric"
# rtol = 1e-8
# atol = 1e-8
# max_steps = 100000
# clock = "auto"                       # of networks: times are values of a clock, of dynamics.clocks
# until_log_t = 1000.0                 # and the run ends at this logarithm of time
# norm_cap = 1e6                       # members that pass it are stopped
# instead of times and tolerances, for verb = "descent":
# steps = 1000
# every = 50                           # iterates kept
# dt = 1.0
# momentum = 0.9
# nesterov = true
# batch_size = 5
# shuffle = "epoch"                    # or "step"

[[sweep]]                              # axes are crossed, the last varies fastest
axis = "rates.schedule.value"          # the dotted path of a value in this file
name = "peak"
values = [0.25, 0.5, 1.0]

[[sweep]]
axis = "problem.decay.features"
name = "decay"
values = {{ start = 0.01, stop = 0.64, num = 4, spacing = "geometric" }}   # or "linear"

[[sweep]]
axis = "start.seed"                    # random starts, the same for every value of the other axes
count = 50

# [[sweep]]                            # axes that move together
# zip = [
#     {{ axis = "problem.decay.prototypes", values = [0.05, 0.5] }},
#     {{ axis = "start.scale", values = [0.3, 0.1] }},
# ]

[keep]
observables = ["objective", "nc1", "feature_norm"]   # of dynamics.observables
final = true                           # every member's values at the last time it reached
trajectories = false                   # every member's values at all times
states = []                            # numbers of members whose whole states are kept
moments = true                         # mean, variance, extremes over members
quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
histograms = {{ nc1 = {{ start = 1e-12, stop = 100.0, num = 43, spacing = "geometric" }} }}
by = ["peak", "decay"]                 # statistics for each value of these axes

[run]
# chunk = 256                          # members a compiled call
# lanes = 64                           # of them, how many move side by side
# memory = "2GiB"                      # at most
sort = true                            # hard members with hard ones
shard = false                          # one chunk over all devices, instead of a chunk a device
format = "netcdf"                      # or "zarr"
"""


def template(name: str) -> str:
    """The commented sweep file of a run of this name."""
    return TEMPLATE.format(name=name)

"""What a search draws and how: its space, Optuna's samplers so that each draw can be repeated, Optuna's pruners."""
import importlib
import json
from decimal import Decimal

import numpy
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler

SAMPLERS = {"tpe": {"startup_trials": 10}, "cmaes": {"startup_trials": 1, "population": None}, "gp": {"startup_trials": 10}, "random": {},
            "qmc": {"sequence": "sobol"}, "grid": {}}  # and the options of each
PRUNERS = {"none": {}, "median": {"startup_trials": 5, "warmup_steps": 0}, "asha": {"min_resource": 1, "reduction_factor": 4, "min_early_stopping_rate": 0}}
NEEDS = {"cmaes": ["cmaes"], "gp": ["scipy", "torch"], "qmc": ["scipy"]}
MOST_POINTS = 100_000


class Parameter:
    def __init__(self, row, earlier):
        self.path = row["path"]
        kinds = [kind for kind in ("float", "int", "categorical") if row.get(kind) is not None]
        if len(kinds) != 1:
            raise ValueError("needs one of float, int, categorical")
        given = row[kinds[0]]
        if kinds[0] == "categorical":
            if len(set(given["values"])) < len(given["values"]):
                raise ValueError(f"two of the values {json.dumps(given['values'])} are equal (1, 1.0 and true are)")
            self.distribution = CategoricalDistribution(given["values"])
        elif kinds[0] == "float":
            self.distribution = FloatDistribution(given["low"], given["high"], bool(given.get("log")), given.get("step"))
        else:
            self.distribution = IntDistribution(given["low"], given["high"], bool(given.get("log")), given.get("step") or 1)
        self.when = row.get("when")
        if self.path in earlier:
            raise ValueError("appears twice")
        if self.when and self.when["path"] not in earlier:
            raise ValueError(f"depends on {self.when['path']}, which is no earlier parameter")

    def __str__(self):
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            text = "one of " + json.dumps(d.choices)
        else:
            kind = "int" if isinstance(d, IntDistribution) else "float"
            text = f"{kind} {d.low} to {d.high}" + (", log scale" if d.log else "") + (f" in steps of {d.step}" if d.step else "")
        return text + (f", when {self.when['path']} is one of {json.dumps(self.when['in'])}" if self.when else "")

    def may_be(self, value):
        d = self.distribution
        return value in d.choices if isinstance(d, CategoricalDistribution) else not isinstance(value, str) and d.low <= value <= d.high

    def applies(self, params):
        return not self.when or (self.when["path"] in params and params[self.when["path"]] in self.when["in"])

    def draw(self, trial):
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return trial.suggest_categorical(self.path, d.choices)
        suggest = trial.suggest_int if isinstance(d, IntDistribution) else trial.suggest_float
        return suggest(self.path, d.low, d.high, step=d.step, log=d.log)

    def grid(self):
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return d.choices
        if isinstance(d, IntDistribution):
            return range(d.low, d.high + 1, d.step)
        if d.step is None:
            raise ValueError(f"{self.path}: a grid needs a step")
        low, high, step = (Decimal(str(number)) for number in (d.low, d.high, d.step))
        count = min(int((high - low) / step), MOST_POINTS) + 1  # one more than there may be: the caller says so
        return [float(low + i * step) for i in range(count)]


def read_space(rows):
    space = []
    for row in rows:
        try:
            space.append(Parameter(row, {parameter.path for parameter in space}))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{row.get('path')}: {f'lacks {error}' if isinstance(error, KeyError) else error}") from error
    return space


def read_options(what, table, given):
    name = given.get("name")
    if name not in table:
        raise ValueError(f'unknown {what} "{name}": there are {", ".join(table)}')
    unknown = sorted(set(given).difference(["name"], *table.values()))
    if unknown:
        raise ValueError(f"no {what} has an option {', '.join(unknown)}: {name} has {', '.join(table[name]) or 'none'}")
    return {"name": name, **table[name], **{option: given[option] for option in table[name] if given.get(option) is not None}}


def make_pruner(options):
    if options["name"] == "none":
        return NopPruner()
    if options["name"] == "median":
        return MedianPruner(options["startup_trials"], options["warmup_steps"])
    return SuccessiveHalvingPruner(options["min_resource"], options["reduction_factor"], options["min_early_stopping_rate"])


class Grid(RandomSampler):
    """Every point once, in an order drawn from the seed: a trial's number says which, so jobs that share a study never take the same one.
    (Optuna's BruteForceSampler would look for a free one, and two processes can look at once; its GridSampler knows no conditions.)"""

    def __init__(self, space, seed):
        super().__init__(seed)
        points = [{}]
        for parameter in space:
            values = parameter.grid()
            size = sum(len(values) if parameter.applies(point) else 1 for point in points)
            if size > MOST_POINTS:
                raise ValueError(f"the grid has more than {MOST_POINTS} points: give larger steps, or take another sampler")
            points = [{**point, **value} for point in points
                      for value in ([{parameter.path: v} for v in values] if parameter.applies(point) else [{}])]
        self.points = [points[i] for i in numpy.random.RandomState(seed).permutation(len(points))]

    @staticmethod
    def taken(trials):
        return sum("fixed_params" not in trial.system_attrs for trial in trials)  # those have been enqueued by hand

    def sample_independent(self, study, trial, param_name, param_distribution):
        place = self.taken(t for t in study.get_trials(deepcopy=False) if t.number < trial.number)
        return self.points[place % len(self.points)][param_name]


class Sequence(QMCSampler):
    """Optuna's, but a trial's number is its place in the sequence (Optuna counts in the storage, where two processes can read the same count),
    and the whole space is known from the first trial on, conditional parameters included."""

    def __init__(self, space, number, seed, sequence):
        super().__init__(qmc_type=sequence, scramble=True, seed=seed)
        self.number = number
        self.space = {p.path: p.distribution for p in space if not p.distribution.single()}

    def infer_relative_search_space(self, study, trial):
        return self.space

    def _find_sample_id(self, study, search_space):
        return self.number


class Samplers:
    """One of Optuna's samplers for each trial: it draws the parameters as a function of seed, trial number and what the storage holds. One sampler
    for all trials would continue from one random state per process, and a second process with the same seed would repeat the first one's trials."""

    def __init__(self, options, seed, space):
        self.options, self.space = options, space
        self.start = int(numpy.random.SeedSequence(seed).generate_state(1)[0])
        self.conditional = [p.path for p in space if p.when]
        self.grid = Grid(space, self.start) if options["name"] == "grid" else None
        for module in NEEDS.get(options["name"], []):
            importlib.import_module(module)
        self.of(0, 0)  # complains of wrong options now

    def of(self, number, known):
        """That of a trial which has so many parameters already."""
        name, options = self.options["name"], self.options
        own = (self.start + number * 0x9E3779B1 + known * 0x85EBCA6B) % 2**32  # odd factors: no two numbers share a seed
        tpe = TPESampler(seed=own, n_startup_trials=options.get("startup_trials", 10), multivariate=True, group=bool(self.conditional), constant_liar=True)
        if name == "cmaes":  # adds the trial's number to its seed itself
            return CmaEsSampler(seed=self.start, n_startup_trials=options["startup_trials"], popsize=options["population"], independent_sampler=tpe,
                                warn_independent_sampling=False)
        if name == "gp":
            return GPSampler(seed=own, n_startup_trials=options["startup_trials"], independent_sampler=tpe, warn_independent_sampling=False)
        if name == "qmc":
            return Sequence(self.space, number, self.start, options["sequence"])
        return {"tpe": tpe, "random": RandomSampler(seed=own), "grid": self.grid}[name]

    def note(self):
        left = {"cmaes": [p.path for p in self.space if p.when or isinstance(p.distribution, CategoricalDistribution)], "gp": self.conditional}
        names = ", ".join(left.get(self.options["name"], []))
        return f"{self.options['name']} cannot draw {names} (conditional or categorical): TPE draws them, apart from the others" if names else None

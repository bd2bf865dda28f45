"""The Optuna process of a hyperparameter search: JSON lines on standard input and output, one answer per request, in order.

A request is {"op": NAME, ...}. Its answer is {"ok": true, ...}, or {"ok": false, "error": one line for a person, "kind": "config" | "storage" |
"internal"}; any answer may carry "notes", lines to show to the user. A number may also be the string "nan", "inf" or "-inf" (null: nan).
Standard error is for people. The end of standard input ends the process; SIGINT does not.

open    {storage, study, direction, metric, sampler{name, ...}, pruner{name, ...}, seed, space[...], job, read_only}
        Makes or joins the study, leaving the one before, if any; refused, with the differences, if it was made with another direction, metric, sampler, pruner, seed or space.
        storage: path of a journal file, or a URL that Optuna knows. read_only (default false): only looks, makes and repairs nothing.
        -> what counts answers, repaired (what a torn end of the journal has lost, or ""), points (of a grid, else null)
ask     {limit}    a new trial, unless there are `limit` trials already (optional; waiting ones do not count) or the grid has no point left
        -> {number, params{path: value}} in the order of the space, conditional ones where their condition holds; or {full: true, why}
adopt   {number, lost} -> {number, params, reported [[step, value]], prune, losses}: a running trial continues here; parameters that it lacks are drawn.
        lost (default false): its job did not end normally; counted once, however often this is asked. losses: how often that happened since it last reported something
report  {number, step, value} -> {prune}. The first value of a step stays; one that is not finite is kept and prunes nothing.
tell    {number, state "COMPLETE" | "PRUNED" | "FAIL", value, reason, attrs{}} -> {state, already}
        COMPLETE without a finite value is recorded as FAIL. Telling the same state again changes nothing ("already": true).
counts  {best} -> {counts{STATE: n}, running [{number, params, complete_params, seconds_since_start, job, last_step, values}],
        best [{number, value, params}]}: the best so many trials (default: 1) that are complete, the best first
trials  {} -> {trials [{number, state, value, params, values [[step, value]], attrs, job, reason, start, end, seconds}]}
importance {} -> {importance{path: share}, method, why}: fANOVA, or PED-ANOVA where parameters are conditional
plots   {folder} -> {files, skipped{file: why}}: SVG files
close   {} -> {}, and the process ends

Space: [{path, float{low, high, log, step} | int{low, high, log, step} | categorical{values}, when{path of an earlier one, in [values]}}].
Trials carry the user attributes muster:job, muster:reason, muster:pruned_at and muster:losses; the study carries muster:search.
report and tell need no adopt: after a crash of this process, open once more and continue.
"""
import contextlib
import inspect
import json
import math
import os
import sys
import traceback
import warnings
from datetime import datetime

ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the other cores are busy with training, and GPSampler is three times as fast so
os.dup2(2, 1)  # what a library prints must not end up between the answers


def answer(content):
    ANSWERS.write(json.dumps(content, allow_nan=False) + "\n")
    ANSWERS.flush()


def missing(error):
    return {"ok": False, "kind": "config", "error": f"a Python package is missing ({one_line(error)}): {sys.executable} -m pip install -r requirements.txt"}


def one_line(error):
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


try:
    import optuna
    from optuna.trial import Trial, TrialState

    from journal import Journal
    from sampling import PRUNERS, SAMPLERS, Samplers, make_pruner, read_options, read_space
except ImportError as error:
    for _ in sys.stdin:
        answer(missing(error))
    sys.exit(0)

SEARCH, JOB, REASON, PRUNED_AT, LOSSES = "muster:search", "muster:job", "muster:reason", "muster:pruned_at", "muster:losses"


class Refusal(Exception):
    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


def differences(there, here):
    """What a study was made with against what a search says, for a person."""
    found = [f"{what} {json.dumps(there[what])} there, {json.dumps(here[what])} here" for what in ("direction", "metric", "seed", "sampler", "pruner")
             if there[what] != here[what]]
    old, new = there["space"], here["space"]
    found += [f"{path} is not searched any more" for path in old if path not in new] + [f"{path} is new" for path in new if path not in old]
    found += [f"{path}: {old[path]} there, {new[path]} here" for path in old if path in new and old[path] != new[path]]
    return found or (["the order of the parameters"] if list(old) != list(new) else [])


def finite_or_text(value):
    """JSON has no NaN and no infinity."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def series(trial):
    return [[step, finite_or_text(value)] for step, value in sorted(trial.intermediate_values.items())]


class OptunaProcess:
    def __init__(self):
        self.study, self.journal, self.notes, self.closed = None, None, [], False

    def leave(self):
        if self.journal:
            self.journal.close()
        self.study, self.journal = None, None

    def open(self, storage, study, direction, metric, sampler, pruner, seed, space, job=None, read_only=False):
        self.leave()
        self.job, self.read_only = job, read_only
        try:
            if direction not in ("minimize", "maximize"):
                raise ValueError(f'unknown direction "{direction}": there are minimize, maximize')
            pruner, sampler = read_options("pruner", PRUNERS, pruner), read_options("sampler", SAMPLERS, sampler)
            self.space = read_space(space)
            self.samplers = Samplers(sampler, seed, self.space)
            how = {"sampler": self.samplers.of(0, 0), "pruner": make_pruner(pruner)}
        except (AttributeError, TypeError, ValueError) as error:
            raise Refusal("config", one_line(error)) from error
        if "://" in storage:
            wait = {"connect_args": {"timeout": 60}} if storage.startswith("sqlite") else {}
            self.storage = optuna.storages.RDBStorage(storage, engine_kwargs=wait)
        else:
            self.journal = Journal(os.path.abspath(storage), read_only)
            self.storage = optuna.storages.JournalStorage(self.journal)
        search = {"direction": direction, "metric": metric, "seed": seed, "sampler": sampler, "pruner": pruner,
                  "space": {parameter.path: str(parameter) for parameter in self.space}}
        with self.transaction():
            joined = self.join(study, search, how)
        self.study, self.study_id = joined, self.storage.get_study_id_from_name(study)
        self.grid = self.samplers.grid
        self.notes += filter(None, [self.samplers.note()])
        return {**self.counts(), "repaired": "; ".join(self.repairs()), "points": len(self.grid.points) if self.grid else None}

    def join(self, name, search, how):
        try:
            study = optuna.load_study(study_name=name, storage=self.storage, **how)
        except KeyError as error:
            if self.read_only:
                raise Refusal("config", f'there is no study "{name}"') from error
            study = optuna.create_study(study_name=name, storage=self.storage, direction=search["direction"], load_if_exists=True, **how)
        known = study.user_attrs.get(SEARCH)
        if known is None:
            if study.get_trials(deepcopy=False) or study.direction.name.lower() != search["direction"] or self.read_only:
                raise Refusal("config", f'the study "{name}" exists and is not a search of muster: take another name')
            study.set_user_attr(SEARCH, search)
        elif different := differences(known, search):
            raise Refusal("config", f'the study "{name}" exists and differs: {"; ".join(different)}. Take another name for another search')
        return study

    def repairs(self):
        """What has been cut off the journal's end since the last call."""
        cut = []
        if self.journal:
            cut, self.journal.cut = self.journal.cut, []
        return cut

    def transaction(self):
        return self.journal.transaction() if self.journal and not self.read_only else contextlib.nullcontext()

    def find(self, number, running=False):
        try:
            if type(number) is not int or number < 0:
                raise KeyError(number)
            trial = self.storage.get_trial(self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number))
        except KeyError as error:
            raise Refusal("internal", f"there is no trial {number}") from error
        if running and trial.state != TrialState.RUNNING:
            raise Refusal("internal", f"trial {number} is not running: it is {trial.state.name}")
        return trial

    def params(self, trial):
        return {p.path: trial.params[p.path] for p in self.space if p.path in trial.params}

    def is_complete(self, params):
        return all(p.path in params for p in self.space if p.applies(params))

    def draw(self, number):
        """All parameters of a running trial; those that it lacks are drawn. The slow part comes before the lock."""
        known = self.find(number)
        if self.is_complete(known.params):
            return self.params(known)
        fixed, params = known.system_attrs.get("fixed_params", {}), {}
        unknown = sorted(set(fixed) - {p.path for p in self.space})
        if unknown:
            raise ValueError(f"enqueued with {', '.join(unknown)}, which the search does not have")
        self.study.sampler = self.samplers.of(number, len(known.params))
        trial = Trial(self.study, known._trial_id)
        trial.relative_params  # drawn together, now
        with self.transaction():
            for p in self.space:
                if p.applies(params):
                    if p.path in fixed and not p.may_be(fixed[p.path]):
                        raise ValueError(f"enqueued with {p.path} = {fixed[p.path]}, which is none of {p}")
                    params[p.path] = p.draw(trial)
        return params

    def begin(self, trials):
        """As study.ask(), but a trial's first record already names its job: a trial without one would be lost with this process."""
        storage = self.study._storage  # which keeps a copy of a database's running trials
        waiting = next((t for t in trials if t.state == TrialState.WAITING), None)
        if waiting:
            storage.set_trial_user_attr(waiting._trial_id, JOB, self.job)
        trial_id = self.study._pop_waiting_trial_id()
        if trial_id is None:
            trial_id = storage.create_new_trial(self.study_id, optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs={JOB: self.job}))
        trial = storage.get_trial(trial_id)
        if trial.user_attrs.get(JOB) != self.job:  # in a database another job may have been quicker
            storage.set_trial_user_attr(trial_id, JOB, self.job)
        return trial.number

    def ask(self, limit=None):
        while True:
            with self.transaction():
                trials = self.study.get_trials(deepcopy=False)
                waiting = sum(trial.state == TrialState.WAITING for trial in trials)
                if limit is not None and len(trials) - waiting >= limit:
                    return {"full": True, "why": f"all {limit} trials have been started"}
                if self.grid and not waiting and self.grid.taken(trials) >= len(self.grid.points):
                    return {"full": True, "why": f"all {len(self.grid.points)} points of the grid have been taken"}
                number = self.begin(trials)
            try:
                return {"number": number, "params": self.draw(number)}
            except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
                self.tell(number, "FAIL", reason=f"no parameters: {one_line(error)}")
                if "fixed_params" not in self.find(number).system_attrs:
                    raise  # the sampler's fault, not that of somebody who enqueued a trial

    def adopt(self, number, lost=False):
        known = self.find(number, running=True)
        whose, (losses, reported, *counted) = known.user_attrs.get(JOB), known.user_attrs.get(LOSSES, [0, 0])
        if reported < len(known.intermediate_values):
            losses = 0
        if lost and whose not in (self.job, *counted):  # otherwise it is in the count: the answer got lost
            losses += 1
            self.storage.set_trial_user_attr(known._trial_id, LOSSES, [losses, len(known.intermediate_values), whose])
        if whose != self.job:
            self.storage.set_trial_user_attr(known._trial_id, JOB, self.job)
        return {"number": number, "params": self.draw(number), "reported": series(known), "prune": PRUNED_AT in known.user_attrs, "losses": losses}

    def report(self, number, step, value):
        with self.transaction():
            known = self.find(number, running=True)
            trial = Trial(self.study, known._trial_id)
            if PRUNED_AT in known.user_attrs:
                return {"prune": step >= known.user_attrs[PRUNED_AT]}
            if step not in known.intermediate_values:
                trial.report(float("nan" if value is None else value), step)
                known = self.find(number)
            prune = step == known.last_step and math.isfinite(known.intermediate_values[step]) and bool(trial.should_prune())
            if prune:  # kept, since ASHA does not give the same answer twice, and the first one may get lost
                trial.set_user_attr(PRUNED_AT, step)
            return {"prune": prune}

    def tell(self, number, state, value=None, reason=None, attrs=None):
        if state not in ("COMPLETE", "PRUNED", "FAIL"):
            raise Refusal("internal", f'a trial ends as COMPLETE, PRUNED or FAIL, not as "{state}"')
        value = float("nan" if value is None else value)
        if state == "COMPLETE" and not math.isfinite(value):
            state, reason = "FAIL", reason or f"the result is {value}"
        with self.transaction():
            known = self.find(number)
            if known.state.name == state:
                return {"state": state, "already": True}
            known = self.find(number, running=True)
            for name, content in {**(attrs or {}), **({REASON: reason} if reason else {})}.items():
                self.storage.set_trial_user_attr(known._trial_id, name, content)
            self.study.tell(number, value if state == "COMPLETE" else None, state=TrialState[state])
        return {"state": state, "already": False}

    def counts(self, best=1):
        trials = self.study.get_trials(deepcopy=False)
        running = [{"number": t.number, "params": self.params(t), "complete_params": self.is_complete(t.params), "job": t.user_attrs.get(JOB, ""),
                    "seconds_since_start": (datetime.now() - t.datetime_start).total_seconds(), "last_step": t.last_step, "values": series(t)}
                   for t in trials if t.state == TrialState.RUNNING]
        complete = [t for t in trials if t.state == TrialState.COMPLETE]
        complete.sort(key=lambda t: t.value, reverse=self.study.direction == optuna.study.StudyDirection.MAXIMIZE)
        return {"counts": {state.name: sum(t.state == state for t in trials) for state in TrialState}, "running": running,
                "best": [{"number": t.number, "value": finite_or_text(t.value), "params": self.params(t)} for t in complete[:best]]}

    def trials(self):
        def time_of(moment):
            return moment and moment.astimezone().isoformat(timespec="milliseconds")

        return {"trials": [{
            "number": t.number, "state": t.state.name, "value": finite_or_text(t.value), "params": self.params(t), "values": series(t),
            "attrs": {name: content for name, content in t.user_attrs.items() if not name.startswith("muster:")},
            "job": t.user_attrs.get(JOB), "reason": t.user_attrs.get(REASON), "start": time_of(t.datetime_start), "end": time_of(t.datetime_complete),
            "seconds": t.duration and t.duration.total_seconds()} for t in self.study.get_trials(deepcopy=False)]}

    def evaluator(self):
        if any(p.when for p in self.space):  # fANOVA knows only parameters that every trial has
            return "PED-ANOVA", optuna.importance.PedAnovaImportanceEvaluator()
        return "fANOVA", optuna.importance.FanovaImportanceEvaluator(seed=0)

    def why_no_importance(self):
        values = [t.value for t in self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
        return "fewer than 2 trials are complete" if len(values) < 2 else "all values are equal" if len(set(values)) == 1 else None

    def importance(self):
        (method, evaluator), why = self.evaluator(), self.why_no_importance()
        shares = {} if why else optuna.importance.get_param_importances(self.study, evaluator=evaluator)
        return {"importance": {path: float(share) for path, share in shares.items()}, "method": method, "why": why}

    def plots(self, folder):
        import matplotlib
        matplotlib.use("Agg")
        matplotlib.rcParams["svg.hashsalt"] = "muster"  # the same file for the same study
        from matplotlib import pyplot
        from optuna.visualization import matplotlib as plot
        warnings.simplefilter("ignore", UserWarning)  # about its own layout
        no_values = None if any(t.intermediate_values for t in self.study.get_trials(deepcopy=False)) else "no trial has reported a value"
        empty = None if self.counts()["best"] else "no trial is complete"
        plans = {"history.svg": (plot.plot_optimization_history, {}, empty), "slices.svg": (plot.plot_slice, {}, empty),
                 "parallel.svg": (plot.plot_parallel_coordinate, {}, empty), "intermediate.svg": (plot.plot_intermediate_values, {}, no_values),
                 "importance.svg": (plot.plot_param_importances, {"evaluator": self.evaluator()[1]}, self.why_no_importance())}
        for name, (draw, options, reason) in plans.items():
            if reason is None:
                draw(self.study, **options)
                pyplot.gcf().savefig(os.path.join(folder, "." + name), format="svg", bbox_inches="tight", metadata={"Date": None})
                os.replace(os.path.join(folder, "." + name), os.path.join(folder, name))
                pyplot.close("all")
        return {"files": [name for name in plans if plans[name][2] is None], "skipped": {name: plans[name][2] for name in plans if plans[name][2]}}

    def close(self):
        self.closed = True
        return {}

    def handle(self, request):
        op = request.pop("op", None)
        if op not in OPERATIONS:
            raise Refusal("internal", f'unknown operation "{op}": there are {", ".join(OPERATIONS)}')
        if self.study is None and op not in ("open", "close"):
            raise Refusal("internal", f"{op} comes after open")
        if self.study and self.read_only and op in ("ask", "adopt", "report", "tell"):
            raise Refusal("internal", f"the study was opened to look only: no {op}")
        method = getattr(self, op)
        try:
            inspect.signature(method).bind(**request)
        except TypeError as error:
            raise Refusal("internal", f"{op}: {error}") from error
        return method(**request)


OPERATIONS = ("open", "ask", "adopt", "report", "tell", "counts", "trials", "importance", "plots", "close")


def storage_error(process, error):
    """What to say of an error that comes from the storage; None for any other."""
    if isinstance(error, json.JSONDecodeError) and process.journal:
        return f"line {process.journal.damaged_line()} of {process.journal.path} is damaged, and others follow it: repair or remove that line"
    known = isinstance(error, (OSError, optuna.exceptions.StorageInternalError)) or type(error).__module__.startswith("sqlalchemy")
    return one_line(error) if known else None


def respond(process, line):
    try:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("not an object")
    except ValueError as error:
        return {"ok": False, "kind": "internal", "error": f"no request: {one_line(error)}"}
    try:
        content = {"ok": True, **process.handle(request)}
    except Refusal as error:
        content = {"ok": False, "kind": error.kind, "error": str(error)}
    except ImportError as error:
        content = missing(error)
    except Exception as error:
        if text := storage_error(process, error):
            content = {"ok": False, "kind": "storage", "error": text}
        else:
            traceback.print_exc()
            content = {"ok": False, "kind": "internal", "error": f"{type(error).__name__}: {one_line(error)}"}
    if notes := process.notes + process.repairs():
        content["notes"] = notes
        process.notes = []
    return content


def main():
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    process = OptunaProcess()
    with contextlib.suppress(ConnectionError):  # the client is gone
        for line in sys.stdin:
            answer(respond(process, line))
            if process.closed:
                break
    process.leave()
    os._exit(0)  # torch and matplotlib would take seconds


if __name__ == "__main__":
    main()

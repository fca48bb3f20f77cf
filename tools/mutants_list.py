"""The faults of :mod:`mutants`: where, what is there, what is put there, and the tests that must fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mutants_claims import CLAIMS

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    """One change of one place: ``old`` (there exactly once) becomes ``new``, and one of ``tests`` must fail."""

    area: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def _many(area: str, file: str, tests: str | tuple[str, ...], *faults: tuple[str, str, str]) -> Iterator[Mutant]:
    guards = (tests,) if isinstance(tests, str) else tests
    for what, old, new in faults:
        yield Mutant(area, what, file, old, new, guards)


NUMBERS = "cl_bench/numbers"
ENGINE = "cl_bench/engine"
SCORES = "tests/test_engine.py::test_scores_of_answers"

MATRIX = _many(
    "matrix", f"{NUMBERS}/matrix.py", "tests/test_matrix.py",
    ("an unmeasured cell is 0", "100.0 * self.correct / np.maximum(self.total, 1), np.nan)",
     "100.0 * self.correct / np.maximum(self.total, 1), 0.0)"),
    ("the row `before` enters the average of all", "return _mean(self.percent[self.before:])",
     "return _mean(self.percent)"),
    ("the last row is the first", "return _mean(self.percent[-1]) if", "return _mean(self.percent[0]) if"),
    ("a column counts one row too late", "seen = start <= i\n", "seen = start < i\n"),
    ("pooled is not pooled", "self.correct[i, seen].sum() / self.total[i, seen].sum() if pooled",
     "(self.correct[i, seen] / self.total[i, seen]).mean() if pooled"),
    ("forgetting counts the row that learned last", "np.where(row > start, top - r", "np.where(row >= start, top - r"),
    ("best looks at the last row too", '{"best": best,', '{"best": best_any,'),
    ("best looks at rows before learning", "np.where(row >= start, r, np.nan)", "np.where(row >= 0, r, np.nan)"),
    ("learned is the row after", "else r[d, j] for j, d", "else r[min(d + 1, len(r) - 1), j] for j, d"),
    ("best_any leaves the last row out", '"best_any": best_any}', '"best_any": best}'),
    ("what no row taught is forgotten", "[len(self.rows) if d is None else d for", "[0 if d is None else d for"),
    ("LibContinual divides by what it sums", "order[:-1]) / len(order))", "order[:-1]) / len(order[:-1]))"),
    ("LibContinual sums all tasks", "for j in order[:-1])", "for j in order)"),
    ("a mean over cells skips what was not measured", "return float(array.mean()) if array.size else math.nan",
     "return float(np.nanmean(array)) if array.size else math.nan"),
    ("plasticity is not of the diagonal", "self.percent[d, j] for j in taken", "self.percent[-1, j] for j in taken"),
    ("matrices of other rows are added", "if (self.rows, self.columns, self.learned, self.before) != (other.rows,",
     "if False and (self.rows, self.columns, self.learned, self.before) != (other.rows,"),
)

STREAM_NUMBERS = _many(
    "stream", f"{NUMBERS}/stream_metrics.py", ("tests/test_matrix_stream.py", f"{SCORES}_made_by_hand"),
    ("a full bin's edge lies in the next bin", "np.ceil(p * bins).astype(np.int64) - 1",
     "np.floor(p * bins).astype(np.int64)"),
    ("calibration by 10 bins", "BINS = 15", "BINS = 10"),
    ("calibration error without its sign taken", "np.abs(self.correct - self.confidence).sum()",
     "(self.correct - self.confidence).sum()"),
    ("a domain of one class collapses", "return classes_present > 1 and share", "return share"),
    ("collapse begins above its share", "share >= threshold", "share > threshold"),
    ("the mean error weighs images", "return float(self.errors.mean()) if self.entries",
     "return self.pooled_error() if self.entries"),
)

STATISTICS = (
    *_many("statistics", f"{NUMBERS}/statistics/paired.py", "tests/test_statistics.py",
           ("Holm counts one test too few", "(len(order) - position) * p[index]",
            "(len(order) - position - 1) * p[index]"),
           ("Holm is not monotone", "running = max(running, (len(order)", "running = max(0.0, (len(order)"),
           ("a p-value of samples can be 0", "float((1 + (np.abs(signs", "float((0 + (np.abs(signs"),
           ("ties do not share their rank", "((size[:, None] == size).sum(axis=1) + 1) / 2",
            "(size[:, None] == size).sum(axis=1)"),
           ("one-sided Wilcoxon", "float(min(1.0, 2 * min(null", "float(min(1.0, 1 * min(null"),
           ("sign flips must exceed what was observed", "(np.abs(_signs(n) @ values) >= observed - slack)",
            "(np.abs(_signs(n) @ values) > observed + slack)"),
           ("the smallest p is half of it", "return 2.0 / 2 ** n if", "return 1.0 / 2 ** n if"),
           ("Cliff's delta is a probability", "float(np.sign(x[:, None] - y[None, :]).mean())",
            "float((x[:, None] > y[None, :]).mean())"),
           ("pairs are taken where one is missing", "if k in b and math.isfinite(a[k])",
            "if math.isfinite(a[k]) and k in b or k in b and math.isfinite(a[k])")),
    *_many("statistics", f"{NUMBERS}/statistics/intervals.py", "tests/test_statistics.py",
           ("a normal interval instead of Student's",
            "_quantile(int(x.size) - 1, 0.5 + confidence / 2) * std / math.sqrt(x.size)",
            "_quantile(10_000_000, 0.5 + confidence / 2) * std / math.sqrt(x.size)"),
           ("spread of a whole population", "np.add.reduce(apart * apart) / (n - 1)", "np.add.reduce(apart * apart) / n"),
           ("the bootstrap is not accelerated", "z / (1 - acceleration * z)", "z")),
    *_many("statistics", f"{NUMBERS}/statistics/ranks.py", "tests/test_statistics.py",
           ("ranks of ties are the worst", "return less + (same + 1) / 2", "return less + same"),
           ("Nemenyi without the root of two", "/ 2 / math.sqrt(2) * math.sqrt(k * (k + 1)",
            "/ 2 * math.sqrt(k * (k + 1)"),
           ("Friedman without its correction for ties", ".sum()) / correction", ".sum())")),
)

MEMORY = _many(
    "memory", "cl_bench/memory.py", "tests/test_memory.py",
    ("the reservoir forgets the image at hand: n + 1 is n", "(u * (n[late] + 1)).long()", "(u * n[late]).long()"),
    ("the reservoir is full one image too late", "late = n >= self.size", "late = n > self.size"),
    ("what came before is not counted", "self.seen += len(y)\n        last:", "last:"),
    ("earlier ones win", "{int(s): k for k, s in enumerate(slot.tolist()) if s < self.size}",
     "{int(s): k for k, s in reversed(list(enumerate(slot.tolist()))) if s < self.size}"),
    ("images are cut instead of rounded", "(x.detach() * 255).round_()", "(x.detach() * 255).floor_()"),
    ("draws repeat rows", "torch.randperm(len(self), generator=generator, device=generator.device)[:n]",
     "torch.randint(len(self), (min(n, len(self)),), generator=generator, device=generator.device)"),
    ("a table that gets wider is padded with zeros", "old.new_full(shape, torch.nan) if grows",
     "old.new_zeros(shape) if grows"),
)

FIELDS = ("protocol_version", "scenario", "weights", "backbone", "preprocess", "answers", "reset", "test_batch_size",
          "max_epochs", "stream_speed", "label_delay", "source_recipe", "metrics", "seed_policy", "source_data")

PROTOCOL = (
    *(Mutant("protocol", f"the fingerprint forgets `{name}`", f"{ENGINE}/protocol.py",
             "for k, v in fields.items() if not is_place(v)}",
             f'for k, v in fields.items() if not is_place(v) and k != "{name}"}}',
             (f"tests/test_identity.py::test_each_field_alone_makes_another_protocol[{name}]",))
      for name in FIELDS),
    *_many("protocol", f"{ENGINE}/protocol.py",
           ("tests/test_identity.py::test_a_field_of_a_scenario_that_is_a_path_is_left_out",
            "tests/test_identity.py::test_each_field_alone_makes_another_protocol[scenario.split]",
            "tests/test_runner.py::test_needs_are_checked_before_any_work", "tests/test_heads_by_name.py"),
           ("the fingerprint forgets what the scenario says", 'f"scenario.{k}": v for k, v in s.protocol().items()',
            'f"scenario.{k}": None for k, v in s.protocol().items()'),
           ("a place is part of the fingerprint", "normal(v) for k, v in fields.items() if not is_place(v)",
            "normal(v) for k, v in fields.items()"),
           ("a method is not refused for what is not given", "    if lacking:\n", "    if lacking and False:\n"),
           ("weights answer for a scenario that learns", "if backbone.head is None or len(scenario.experiences()):",
            "if backbone.head is None:")),
)

POSITION = ("step", "fitted", "inside", "in_stream", "rows", "correct", "total", "entries", "growth", "counts", "seconds",
            "busy", "warnings", "trainable", "forward_images", "backward_images", "stream", "predictions", "elapsed", "events")
RESUME = "tests/test_resume.py"
STOPPED = f"{RESUME}::test_stopped_in_the_middle_and_resumed_equals_uninterrupted"
BETWEEN = f"{RESUME}::test_stopped_between_and_resumed"
RESUMED = (f"{STOPPED}[deployed learning]", f"{BETWEEN}[fitted-a fit]", f"{BETWEEN}[between steps-a segment]",
           f"{RESUME}::test_warnings_come_back", f"{RESUME}::test_time_goes_on_where_it_stood")
REFUSED = f"{RESUME}::test_another_run_is_refused_with_the_field_and_untouched"

CHECKPOINT = (
    *(Mutant("checkpoint", f"a checkpoint forgets `{name}` of the position", f"{ENGINE}/run_state.py",
             'checkpoint.save(self.writer.folder / "checkpoint", method, position,',
             f'checkpoint.save(self.writer.folder / "checkpoint", method, replace(position, {name}=Position().{name}),',
             RESUMED) for name in POSITION),
    *_many("checkpoint", f"{ENGINE}/run_state.py", RESUMED,
           ("events of work that is done again stay", "self.writer.cut_events(position.events)", "pass"),
           ("a step inside is forgotten as it is saved", "replace(self._told(), inside=inside,",
            "replace(self._told(), inside=None,")),
    *_many("checkpoint", f"{ENGINE}/run_state.py", REFUSED,
           ("another seed is the same run", '"seed": record.get("seed"),', '"seed": 0,'),
           ("another config is the same run", 'return {"config": record.get("config"),', 'return {"config": None,'),
           ("another protocol is the same run", '"fingerprint": record.get("fingerprint"),', '"fingerprint": None,'),
           ("an edited method is the same run", '"method_source": (record.get("method") or {}).get("source_digest")',
            '"method_source": None'),
           ("edited code of the harness is the same run",
            '"cl_bench_source": (record.get("environment") or {}).get("code_digest")', '"cl_bench_source": None')),
    *_many("checkpoint", f"{ENGINE}/checkpoint.py", "tests/test_checkpoint.py",
           ("damaged tensors are read", 'if hashlib.sha256(data).hexdigest() != whole["sha256"]:', "if False:"),
           ("a damaged tree is read", 'if hashlib.sha256(outer["state"].encode()).hexdigest() != outer["sha256"]:',
            "if False:"),
           ("another method's checkpoint is taken", "if owner != class_path(type(method)):", "if False:"),
           ("another version's checkpoint is taken", 'if whole["schema"] != SCHEMA:', "if False:"),
           ("the mark is not kept", '"mark": Method.marked(method), "position"', '"mark": None, "position"'),
           ("the old tensors go before the new state stands", "    for other in folder.glob(",
            "    for other in [] and folder.glob(")),
    *_many("checkpoint", f"{ENGINE}/fit.py", (f"{STOPPED}[a fit with a schedule]", f"{STOPPED}[a fit with a memory]"),
           ("the losses of before a stop are lost", "_Losses(None if at is None else at.losses)", "_Losses(None)"),
           ("the optimizer starts anew", '"optimizer_states": at.optimizers,',
            '"optimizer_states": [o for o in at.optimizers if False],')),
    *_many("checkpoint", f"{ENGINE}/fit.py", "tests/test_resume_methods.py",
           ("generators do not come back inside a fit", "        set_generators(at.generators)\n", "        pass\n"),
           ("a resumed fit draws other training data", '        method.rng.set_state(began["rng"])\n', "        pass\n"),
           ("what a resumed fit does again is counted again",
            "            meter.forward_images, meter.backward_images = counted\n", "            pass\n")),
    *_many("checkpoint", f"{ENGINE}/feed.py", f"{RESUME}::test_a_feed_goes_on_in_the_middle_of_an_epoch",
           ("a resumed feed begins its epoch again", "self.batch = first = 0 if at is None else at.batch",
            "self.batch = first = 0"),
           ("augmentation starts anew", 'self.generators["noise"].set_state(at.noise.cpu())', "pass")),
)

METHOD = _many(
    "engine", "cl_bench/method.py",
    ("tests/test_method_state.py", "tests/test_engine.py::test_what_is_final_cannot_be_overridden"),
    ("a reset keeps what was born after the mark", "            del self.__dict__[key]\n", "            pass\n"),
    ("a reset hands out the mark itself", 'fresh = copy.deepcopy(self.__dict__["_marked"])',
     'fresh = self.__dict__["_marked"]'),
    ("a mark is no copy", 'self.__dict__["_marked"] = copy.deepcopy(own(self))',
     'self.__dict__["_marked"] = own(self)'),
    ("finals can be overridden", "if getattr(cls, name) is not getattr(Method, name):", "if False:"),
    ("finals can be set", "        if name in FINAL:\n            raise UserError(f\"{type(self)",
     "        if False:\n            raise UserError(f\"{type(self)"),
    ("the softmax is over all classes", "align_columns(logits, self.head.space, among), columns_of(y, among)",
     "logits, columns_of(y, self.head.space)"),
    ("a setting called samples counts as images", "for m in self.modules() if m is not self)",
     "for m in self.modules())"),
)

METER = _many(
    "engine", f"{ENGINE}/meter.py", "tests/test_meter.py",
    ("a pass counts once for a batch", "self.forward_images += self._passing", "self.forward_images += 1"),
    ("backward passes are not counted", "self.backward_images += images", "self.backward_images += 0"),
    ("a shared tensor counts twice", "unique = {id(p): p for p in module.parameters()}.values()\n    return {\"total\"",
     "unique = [p for m in module.modules() for p in m.parameters(recurse=False)]\n    return {\"total\""),
)

MEASURE = _many(
    "engine", f"{ENGINE}/measure.py",
    (*(f"tests/test_engine.py::test_{t}" for t in (
        "a_test_sets_own_batch_size_and_classes_are_kept", "answers_that_are_not_finite_are_wrong_and_counted",
        "images_of_all_test_sets_come_mixed_where_they_are_answered_among_the_same_classes",
        "a_wrong_shape_is_refused_in_words", "a_method_that_reads_ahead_is_refused")), "tests/test_contract_facts.py"),
    ("a test set's own batch size is ignored",
     "most = first.batch_size or size", "most = size"),
    ("test sets come one after the other", "order = order[torch.randperm(len(pool),",
     "order = order[torch.arange(len(pool)) if True else torch.randperm(len(pool),"),
    ("measuring teaches", "asked = copy.deepcopy(method) if type(method).adapts else method\n", "asked = method\n"),
    ("answers in order of arrival", 'back = np.argsort(whole[0], kind="stable")\n        return Answers(',
     "back = np.arange(len(whole[0]))\n        return Answers("),
    ("an answer that is not finite is a class", "torch.where(bad, -1, column)", "column"),
    ("infinity is a confident answer", "| (logits == torch.inf).any(1) | best.isnan()", ""),
    ("gradients are on where nothing adapts", "torch.set_grad_enabled(type(method).adapts and not missed)",
     "torch.set_grad_enabled(True)"),
    ("answers of the wrong shape are taken", "if logits.shape != (len(x), len(space)):", "if False:"),
    ("a batch that is handed out twice is answered", "        if len(handed) != 1:\n", "        if False:\n"),
)

STREAM = _many(
    "stream", f"{ENGINE}/stream.py", "tests/test_stream_clock.py",
    ("a backward pass costs one", "+ 2 * (self.meter.backward_images - backward)",
     "+ 1 * (self.meter.backward_images - backward)"),
    ("a batch's own slot is free", "passes / len(rows) * self.speed - 1)", "passes / len(rows) * self.speed)"),
    ("a missed batch takes no time", "self.state.busy -= 1", "self.state.busy -= 0"),
    ("a busy method adapts on", "self.missing = self.speed > 0 and self.state.busy >= 1",
     "self.missing = self.speed > 0 and self.state.busy > 1"),
    ("no reset before a batch", 'if self.scenario.reset == "batch":', "if False:"),
    ("labels come one batch early", "if len(self.state.waiting) > self.delay:",
     "if len(self.state.waiting) >= self.delay:"),
    ("labels come to everybody", 'labels if "labels" in type(method).needs else None', "labels"),
    ("labels are the first ones", "self.labels.to(rows.device)[rows]", "self.labels.to(rows.device)[: len(rows)]"),
    ("a segment's own batch size is ignored", "test.batch_size or scenario.test_batch_size  # type",
     "scenario.test_batch_size  # type"),
    ("a reset loses what was counted", "self.spent.get(key, 0) + value - after.get(key, 0)", "self.spent.get(key, 0)"),
    ("collapse is judged by the classes of all domains", "len(np.unique(truth[here]))", "len(np.unique(truth))"),
)

STEPS = _many(
    "engine", f"{ENGINE}/steps.py", ("tests/test_method_state.py", "tests/test_runner.py::test_record_is_complete"),
    ("no reset between domains", 'elif at is None and run.scenario.reset == "domain":', "elif False:"),
    ("no mark before a stream", "    Method.mark(method)\n", "    pass\n"),
    ("cells of classes never seen are measured", "if scenario.measurable(t, known[k])]", "]"),
    ("the source is handed to everybody", 'source = scenario.source if "source" in type(method).needs else None',
     "source = scenario.source"),
    ("counters of before a reset are lost", "value + p.stream.spent.get(key, 0)", "value"),
    ("a visit has no number", "visit=1 + sum(e.domain == entry.domain for e in p.entries)", "visit=1"),
)

SEEDING = _many(
    "engine", f"{ENGINE}/seeding.py", "tests/test_contract_facts.py",
    ("all places draw the same", "str(p) for p in (seed, *position)", "str(p) for p in (seed,)"),
    ("all seeds draw the same", "str(p) for p in (seed, *position)", "str(p) for p in (0, *position)"),
)

CORRUPTIONS = _many(
    "corruptions", "cl_bench/corruptions/parameters.py", "tests/test_corruptions_parameters.py",
    ("severity 3 of Gaussian noise, 32 x 32", '"gaussian_noise": (0.04, 0.06, 0.08,',
     '"gaussian_noise": (0.04, 0.06, 0.07,'),
    ("severity 4 of Gaussian noise, 224 x 224", '"gaussian_noise": (0.08, 0.12, 0.18, 0.26,',
     '"gaussian_noise": (0.08, 0.12, 0.18, 0.28,'),
    ("severity 3 of fog, 32 x 32", '"fog": ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5),',
     '"fog": ((0.2, 3.0), (0.5, 3.0), (0.7, 2.5),'),
    ("severity 4 of JPEG, 224 x 224", '"jpeg_compression": (25, 18, 15, 10,', '"jpeg_compression": (25, 18, 15, 12,'),
    ("severity 3 of zoom blur, 224 x 224", "(1.16, 0.01), (1.21, 0.02), (1.26", "(1.16, 0.01), (1.22, 0.02), (1.26"),
    ("severity 4 of elastic transform, 32 x 32", "(0.1, 0.04, 0.05), (0.1, 0.03, 0.03))",
     "(0.1, 0.05, 0.05), (0.1, 0.03, 0.03))"),
    ("severity 4 of glass blur, 224 x 224", "(1.0, 2, 3), (1.1, 3, 2),", "(1.0, 2, 3), (1.1, 2, 2),"),
)

PROMISES = tuple(Mutant("README", *claim) for claim in CLAIMS)

MUTANTS: tuple[Mutant, ...] = (*MATRIX, *STREAM_NUMBERS, *STATISTICS, *MEMORY, *PROTOCOL, *CHECKPOINT, *METHOD, *METER,
                               *MEASURE, *STREAM, *STEPS, *SEEDING, *CORRUPTIONS,
                               *PROMISES)

"""The contract's own checker, for our methods and for yours: ``cl-bench check mine.py:Mine``.

``check_method(cls)`` and ``check_scenario(scenario)`` return a :class:`Report`: one line per promise of the contract,
each passed, failed with what was seen, or exempt with the method's own reason. ``checks_for(cls)`` names the checks, so
that each can be a test of its own: :class:`Checker` asks one by name.
"""

from .method_checks import Checker, check_method, checks_for
from .report import Finding, Report
from .scenario_checks import check_scenario
from .toy import ToyScenario

__all__ = ["Checker", "Finding", "Report", "ToyScenario", "check_method", "check_scenario", "checks_for"]

"""Label selectors: what Kubernetes would refuse of them elsewhere."""

import re

from netloom.api.meta import LabelSelector
from netloom.api.problem import Problem

_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_LONGEST_KEY, _LONGEST_VALUE = 317, 63
_NO_LABEL = "not a label."
_SUCH_AS = "Write one such as example.com/role."


def check_selector(selector: LabelSelector, *, object: str) -> list[Problem]:
    """Everything that is wrong with the selector at spec.nodeSelector."""

    def wrong(at: str, value: str, message: str, way_out: str) -> Problem:
        return Problem(object, f"spec.nodeSelector.{at}", value, "InvalidSelector", message, way_out)

    def value(at: str, text: str) -> None:
        if not _is(_VALUE, text, _LONGEST_VALUE):
            way_out = 'Write letters, digits, "-", "_" and ".", with a letter or digit at both ends.'
            problems.append(wrong(at, text, "not a label's value.", way_out))

    problems: list[Problem] = []
    for key, text in selector.match_labels.items():
        if not _is(_KEY, key, _LONGEST_KEY):
            problems.append(wrong("matchLabels", "", f'"{key[:_LONGEST_KEY]}" is {_NO_LABEL}', _SUCH_AS))
        value(f"matchLabels[{key}]", text)
    for number, each in enumerate(selector.match_expressions):
        at = f"matchExpressions[{number}]"
        if not _is(_KEY, each.key, _LONGEST_KEY):
            problems.append(wrong(f"{at}.key", each.key, _NO_LABEL, _SUCH_AS))
        compares = each.operator in ("In", "NotIn")
        if compares and not each.values:
            message = f"{each.operator} compares with values, and there are none."
            problems.append(wrong(f"{at}.values", "", message, "Give at least one."))
        if not compares and each.values:
            message = f"{each.operator} asks for the key alone."
            problems.append(wrong(f"{at}.values", "", message, "Leave the values out, or use In or NotIn."))
        for index, text in enumerate(each.values):
            value(f"{at}.values[{index}]", text)
    return problems


def _is(pattern: re.Pattern[str], text: str, longest: int) -> bool:
    return len(text) <= longest and pattern.fullmatch(text) is not None

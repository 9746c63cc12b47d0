"""``junit.xml``: one test case a bar."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

from validation.bars import Judgement
from validation.scorecard import Scorecard

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(scorecard: Scorecard, judgements: Sequence[Judgement]) -> bytes:
    """The judgements as JUnit XML; without any, a suite of no cases."""
    failed = sum(not j.passed for j in judgements)
    counts: dict[str, Any] = {"tests": str(len(judgements)), "failures": str(failed), "errors": "0"}
    root = ET.Element("testsuites", name="frontier validate", **counts)
    suite = ET.SubElement(root, "testsuite", name=_suite_name(scorecard), skipped="0", **counts)
    properties = ET.SubElement(suite, "properties")
    for side in ("measured", "simulated"):
        digest = str(scorecard.provenance[side]["hash"])
        ET.SubElement(properties, "property", name=f"{side}.hash", value=digest)
    for judgement in judgements:
        case = ET.SubElement(
            suite, "testcase", classname=f"frontier.{judgement.metric}", name=judgement.statistic
        )
        if not judgement.passed:
            failure = ET.SubElement(case, "failure", message=judgement.reason, type="bar")
            failure.text = f"{judgement.metric} {judgement.statistic}: {judgement.reason}"
    ET.indent(root)
    text: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return text + b"\n"


def _suite_name(scorecard: Scorecard) -> str:
    sides = (scorecard.provenance[side]["name"] for side in ("simulated", "measured"))
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", " against ".join(map(str, sides)))

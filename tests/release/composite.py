"""Runs the steps of action.yml as a runner does: composite.py FOLDER NAME=VALUE… prints the outputs as
NAME=VALUE and ends with the code of the first step that fails. The environment has the GITHUB_ variables,
and STEP_PREFIX, the words in front of each step's bash."""

import os
import re
import subprocess
import sys
import tempfile

import yaml

folder, *given = sys.argv[1:]
with open(os.path.join(folder, "action.yml"), encoding="utf-8") as file:
    action = yaml.safe_load(file)
inputs = {name: str(each.get("default", "")) for name, each in action["inputs"].items()}
for pair in given:
    name, value = pair.split("=", 1)
    assert name in inputs, name
    inputs[name] = value
context = {f"inputs.{name}": value for name, value in inputs.items()}
context["github.action_repository"] = os.environ.get("ACTION_REPOSITORY", "")
context["github.action_ref"] = os.environ.get("ACTION_REF", "")


def value_of(expression):
    expression = expression.strip()
    if comparison := re.fullmatch(r"(\S+) (==|!=) '([^']*)'", expression):
        left, operator, right = comparison.groups()
        return (context[left] == right) == (operator == "==")
    # An output that was not set is empty.
    return context.get(expression, "") if expression.startswith("steps.") else context[expression]


def filled_in(text):
    return re.sub(r"\$\{\{(.*?)\}\}", lambda found: value_of(found[1]), text)


assert action["runs"]["using"] == "composite"
for step in action["runs"]["steps"]:
    if not value_of(step["if"]):
        continue
    assert step["shell"] == "bash"
    # What a caller wrote must not become part of a script.
    assert "${{" not in step["run"], step["run"]
    variables = {name: filled_in(value) for name, value in step["env"].items()}
    with tempfile.NamedTemporaryFile("w+") as output:
        os.chmod(output.name, 0o666)
        variables |= {"GITHUB_OUTPUT": output.name, "GITHUB_ACTION_PATH": folder}
        command = os.environ.get("STEP_PREFIX", "").split()
        command += ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        code = subprocess.run(command, env=os.environ | variables, stdout=sys.stderr).returncode
        if code != 0:
            sys.exit(code)
        for line in output.read().splitlines():
            name, value = line.split("=", 1)
            context[f"steps.{step.get('id')}.outputs.{name}"] = value

for name, each in action["outputs"].items():
    print(f"{name}={filled_in(each['value'])}")

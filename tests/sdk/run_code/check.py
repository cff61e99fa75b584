"""What `run_code` must do with any 2.x version of the Python package. Imports nothing else."""

from __future__ import annotations

import base64

from e2b_code_interpreter import Sandbox

sandbox = Sandbox.create(timeout=120)
try:
    seen: list[str] = []
    execution = sandbox.run_code(
        "x = 20\nprint('out')\nx + 1", on_stdout=lambda m: seen.append(m.line)
    )
    assert (execution.text, seen, execution.logs.stdout) == ("21", ["out\n"], ["out\n"])
    assert sandbox.run_code("import os; os.getenv('V')", envs={"V": "w"}).text == "w"
    error = sandbox.run_code("1 / 0").error
    assert error is not None and error.name == "ZeroDivisionError" and error.traceback
    plot = "import matplotlib.pyplot as plt; plt.bar(['a', 'b'], [1, 2]); plt.show()"
    (result,) = sandbox.run_code(plot).results
    assert base64.b64decode(result.png).startswith(b"\x89PNG") and result.chart.type.value == "bar"
    (result,) = sandbox.run_code("import pandas as pd; pd.DataFrame({'a': [1, 2]})").results
    assert result.data == {"a": [1, 2]}
    context = sandbox.create_code_context(cwd="/tmp", language="javascript")
    assert sandbox.run_code("process.cwd()", context=context).text == "/tmp"
    assert sandbox.run_code("echo bash", language="bash").logs.stdout == ["bash\n"]
    if hasattr(sandbox, "list_code_contexts"):
        assert context.id in {one.id for one in sandbox.list_code_contexts()}
        sandbox.restart_code_context(context)
        sandbox.remove_code_context(context)
        assert context.id not in {one.id for one in sandbox.list_code_contexts()}
finally:
    sandbox.kill()
print("works")

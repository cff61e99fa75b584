"""Run code that draws a chart, and keep the picture."""

import base64
import tempfile
from pathlib import Path

from e2b_code_interpreter import Sandbox

CODE = """
import matplotlib.pyplot as plt
import numpy as np

x = np.linspace(0, 10, 200)
plt.plot(x, np.sin(x), label="sine")
plt.plot(x, np.cos(x), label="cosine")
plt.title("Two waves")
plt.legend()
plt.show()
float(np.sin(x).max().round(3))
"""

with Sandbox.create() as sandbox:
    execution = sandbox.run_code(CODE, on_result=lambda result: print("result:", *result.formats()))
    print(f"value of the last line: {execution.text}")
    plot = execution.results[0]
    print(f"chart: {plot.chart.type.value}, {plot.chart.title}, {len(plot.chart.elements)} lines")
    picture = Path(tempfile.mkdtemp()) / "waves.png"
    picture.write_bytes(base64.b64decode(plot.png))
    print(f"picture: {picture}, {picture.stat().st_size} bytes")

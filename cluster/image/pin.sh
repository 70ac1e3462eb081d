#!/usr/bin/env bash
# Pin the images of the Kubernetes files: put the digests that the registries name now, which nobody can move to another
# image, in place of the tags in kustomization.yaml.
#
#   cluster/image/pin.sh REGISTRY/kexue_train:cuda
#
# Run it after every push, and keep the changed file. For the base of the image itself: docker build --build-arg BASE=...
set -euo pipefail
own="$1"
file="$(dirname "$0")/../kubernetes/kustomization.yaml"
redis=redis:7.4.0 # the one of redis.yaml

digest() { # IMAGE
    local found
    found="$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$1")"
    [[ $found =~ ^sha256:[0-9a-f]{64}$ ]] || { echo "$1: the registry names no digest, but '$found'" >&2; exit 1; }
    echo "$found"
}

own_digest="$(digest "$own")" redis_digest="$(digest "$redis")" # before anything is written
sed -i '/^images:/,$d' "$file"
cat >>"$file" <<END
images:
  - name: kexue_train
    newName: ${own%:*}
    digest: $own_digest # $own
  - name: redis
    digest: $redis_digest # $redis
END

#!/bin/sh
# Generate the message and service modules from our .proto files. The results are committed.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
for file in src/holdfast/proto/*.proto; do
  "$python" -m grpc_tools.protoc -Isrc --python_out=src --pyi_out=src "holdfast/proto/$(basename "$file")"
done
for name in runtime_v1 node agent; do
  "$python" -m grpc_tools.protoc -Isrc --grpc_python_out=src "holdfast/proto/$name.proto"
done

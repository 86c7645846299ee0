"""Bytes on disk: the manifest, the safetensors container, digests, and folders written whole.

SPEC.md beside this file is normative; `[R..]` in an error names its rule. Nothing here knows
torch or codecs: to the format a codec is a name, params, and part sizes.
"""

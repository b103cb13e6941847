from pipeline.parallel.quick_imports import leaving_uncompiled

with leaving_uncompiled():
    import megatron.core  # noqa: F401

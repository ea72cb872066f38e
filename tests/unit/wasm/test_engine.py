import wasmtime

from clawbox.wasm.engine import ENGINE_FINGERPRINT, cpu_features, new_engine


def test_an_artifact_loads_in_another_engine():
    artifact = wasmtime.Module(new_engine(), "(module)").serialize()
    wasmtime.Module.deserialize(new_engine(), artifact)


def test_the_fingerprint_names_the_processor():
    assert len(ENGINE_FINGERPRINT) == 32
    info = "processor: 0\nflags\t\t: fpu avx2 sse4_1 whatever\n\nprocessor: 1\nflags: fpu\n"
    assert cpu_features(info, "x86_64") == ("avx2", "sse4_1")
    assert cpu_features("Features\t: fp asimd atomics\n", "aarch64") == ("asimd", "atomics", "fp")

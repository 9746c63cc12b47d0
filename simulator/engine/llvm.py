"""What only LLVM can do: machine code from assembly, and loading it where loader.py cannot.

Its library takes up to 100 MiB, so machine code is made by running this file as a program,
assembly in and an object file out; it is imported only where loader.py does not know the object.
It imports nothing of the project.
"""

from __future__ import annotations

import sys
from typing import Any

import llvmlite.binding as llvm


def machine_code(assembly: str) -> bytes:
    """An object file of a module, optimised as a whole, for any processor of this architecture."""
    machine = _machine()
    module = llvm.parse_assembly(assembly)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    tuning = llvm.create_pipeline_tuning_options(speed_level=1)
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    made: bytes = machine.emit_object(module)
    return made


def load(content: bytes) -> Any:
    """An object file in memory; ``get_function_address`` finds its functions."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(content))
    engine.finalize_object()
    return engine


def _machine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(opt=3, jit=True)


if __name__ == "__main__":
    sys.stdout.buffer.write(machine_code(sys.stdin.read()))

/* What libFuzzer calls: a Python that has imported one target, and the target's C function.

   GAZER_FUZZ_PYTHON   the interpreter whose packages are used (.venv's)
   GAZER_FUZZ_PATH     the folder of the compiled modules, put in front of all others
   GAZER_FUZZ_TARGET   the module's name; its address() gives a Function

   A Function runs one input, without Python objects, and returns NULL, or which of its checks
   failed: that ends the process like any crash, and libFuzzer keeps the input. */

#include <Python.h>
#include <sanitizer/lsan_interface.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef const char *(*Function)(const uint8_t *data, size_t size);

static Function function;

static void need(int good, const char *what)
{
    if (good)
        return;
    fprintf(stderr, "fuzz: %s\n", what);
    if (PyErr_Occurred())
        PyErr_Print();
    exit(2);
}

static const char *setting(const char *name)
{
    const char *value = getenv(name);
    need(value != NULL, name);
    return value;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    PyPreConfig before;
    PyConfig config;
    PyObject *path, *folder, *module, *address;
    (void)argc;
    (void)argv;
    __lsan_disable(); /* what Python keeps for ever is no leak */
    PyPreConfig_InitPythonConfig(&before);
    before.allocator = PYMEM_ALLOCATOR_MALLOC; /* so that the sanitizer sees each object */
    need(!PyStatus_Exception(Py_PreInitialize(&before)), "Python does not start");
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    config.parse_argv = 0;
    config.write_bytecode = 0;
    need(!PyStatus_Exception(PyConfig_SetBytesString(&config, &config.program_name,
                                                     setting("GAZER_FUZZ_PYTHON"))),
         "GAZER_FUZZ_PYTHON");
    need(!PyStatus_Exception(Py_InitializeFromConfig(&config)), "Python does not start");
    PyConfig_Clear(&config);
    path = PySys_GetObject("path");
    folder = PyUnicode_DecodeFSDefault(setting("GAZER_FUZZ_PATH"));
    need(path && folder && PyList_Insert(path, 0, folder) == 0, "GAZER_FUZZ_PATH");
    module = PyImport_ImportModule(setting("GAZER_FUZZ_TARGET"));
    need(module != NULL, "the target can't be imported");
    address = PyObject_CallMethod(module, "address", NULL);
    need(address != NULL, "address()");
    function = (Function)PyLong_AsVoidPtr(address);
    need(function != NULL, "address()");
    __lsan_enable();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *failed = function(data, size);
    if (failed != NULL) {
        fprintf(stderr, "fuzz: CHECK FAILED: %s\n", failed);
        abort();
    }
    return 0;
}

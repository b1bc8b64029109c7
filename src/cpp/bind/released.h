// Native work without the interpreter's lock, which other threads take meanwhile.
#pragma once

#include <Python.h>

namespace slmq {

// As py::gil_scoped_release, and safe where a thread outlives the interpreter: before Python 3.14
// such a thread is ended when it asks for the lock again, by unwinding its stack, which must be
// able to pass through here. A destructor that lets nothing out would abort the process.
class Released {
 public:
  Released() : state_(PyEval_SaveThread()) {}
  ~Released() noexcept(false) { PyEval_RestoreThread(state_); }
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace slmq

# Fails when an ISA's object exports anything but its kernel table.
execute_process(COMMAND ${NM} -C --defined-only --extern-only ${OBJECTS}
                OUTPUT_VARIABLE output RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "nm failed on ${OBJECTS}")
endif()
string(REGEX MATCHALL "[^\n]+" lines "${output}")
foreach(line IN LISTS lines)
  if(line MATCHES "^[0-9a-f]+ [A-Z] " AND NOT line MATCHES " [A-Z] (slmq::kKernels|___asan|__odr_asan)")
    message(FATAL_ERROR "${OBJECTS} exports more than its table: ${line}")
  endif()
endforeach()

#pragma once

#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "lapidary/core/dtype.h"

// Names of parameterised tests.
namespace lapidary::test {

inline std::string case_name(const ::testing::TestParamInfo<const char*>& test) {
  return test.param;
}

using CaseAndDtype = std::tuple<const char*, Dtype>;
inline std::string case_and_dtype(const ::testing::TestParamInfo<CaseAndDtype>& test) {
  return std::string(std::get<0>(test.param)) + "_" + name_of(std::get<1>(test.param));
}

}  // namespace lapidary::test

// Runs the tests of one folder: unit_torch core/losses [options of GoogleTest]. Without a folder: all of the program's.
#include <gmock/gmock.h>

#include <cstdio>
#include <cstring>
#include <string>

int main(int argc, char** argv) {
  const std::string folder = argc > 1 && argv[1][0] != '-' ? argv[1] : "";
  testing::InitGoogleMock(&argc, argv);
  if (!folder.empty()) {
    std::string filter;
    const auto& all = *testing::UnitTest::GetInstance();
    for (int i = 0; i < all.total_test_suite_count(); ++i)
      for (int j = 0; j < all.GetTestSuite(i)->total_test_count(); ++j) {
        const testing::TestInfo& test = *all.GetTestSuite(i)->GetTestInfo(j);
        const std::string file = test.file();
        const std::string file_folder = file.substr(0, file.rfind('/'));
        const std::string wanted = "/tests/" + folder;
        if (file_folder.size() >= wanted.size() &&
            file_folder.compare(file_folder.size() - wanted.size(), wanted.size(), wanted) == 0)
          filter += std::string(test.test_suite_name()) + "." + test.name() + ":";
      }
    if (filter.empty()) {
      std::fprintf(stderr, "%s has no tests of tests/%s.\n", argv[0], folder.c_str());
      return 2;
    }
    // A filter on the command line wins.
    const std::string given = GTEST_FLAG_GET(filter);
    if (given == "*") GTEST_FLAG_SET(filter, filter);
  }
  return RUN_ALL_TESTS();
}

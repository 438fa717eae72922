#include "server/load_report.h"

#include <gtest/gtest.h>

#include <cmath>

namespace ferrite {
namespace {

TEST(EventRateTest, IsTheRateOfASteadyStream) {
  EventRate rate;
  Clock::time_point now{std::chrono::hours(1)};
  EXPECT_EQ(rate.PerSecond(now), 0);
  for (int i = 0; i < 10000; ++i) {
    now += std::chrono::milliseconds(20);
    rate.Add(now);
  }
  EXPECT_NEAR(rate.PerSecond(now), 50, 0.1);
  EXPECT_NEAR(rate.PerSecond(now + std::chrono::seconds(10)), 50 / std::exp(1), 0.1);
  EXPECT_LT(rate.PerSecond(now + std::chrono::hours(1)), 1e-9);
}

WorkerLoad Load(int32_t running, int32_t waiting, int32_t free_blocks) {
  WorkerLoad load;
  load.requests_running = running;
  load.requests_waiting = waiting;
  load.kv_blocks_free = free_blocks;
  load.kv_blocks_total = 100;
  return load;
}

TEST(LoadReportTest, SumsTheWorkers) {
  const WorkerLoad workers[] = {Load(3, 0, 80), Load(1, 0, 60)};
  const auto report = MakeLoadReport(workers, 8, 2.5);
  EXPECT_EQ(report.rps_fractional(), 2.5);
  EXPECT_NEAR(report.utilization().at("kv_cache"), 0.3, 1e-12);
  EXPECT_NEAR(report.named_metrics().at("kv_cache_usage_ratio"), 0.3, 1e-12);
  EXPECT_EQ(report.named_metrics().at("requests_running"), 4);
  EXPECT_EQ(report.named_metrics().at("requests_waiting"), 0);
  EXPECT_NEAR(report.application_utilization(), 0.3, 1e-12) << "the cache is nearer its end";
}

TEST(LoadReportTest, WhatWaitsGoesAboveOne) {
  const WorkerLoad workers[] = {Load(8, 4, 50)};
  EXPECT_EQ(MakeLoadReport(workers, 8, 0).application_utilization(), 1.5);
}

TEST(LoadReportTest, FailedWorkersHaveNoRoom) {
  std::vector<WorkerLoad> workers(2);
  workers[0].requests_running = 4;
  workers[1].failed = true;
  EXPECT_EQ(MakeLoadReport(workers, 8, 0).application_utilization(), 0.5);
  workers[0].failed = true;
  EXPECT_EQ(MakeLoadReport(workers, 8, 0).application_utilization(), 1);
}

TEST(LoadReportTest, OnlyTheBinaryFormatCanBeAskedFor) {
  EXPECT_TRUE(AsksForLoadReport("bin"));
  EXPECT_TRUE(AsksForLoadReport("BIN"));
  for (const char* other : {"", "json", "text", "binary", "b"}) {
    EXPECT_FALSE(AsksForLoadReport(other)) << other;
  }
}

}  // namespace
}  // namespace ferrite

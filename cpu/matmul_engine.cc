#include "cpu/matmul_engine.h"

#include "cpu/dnnl_engine.h"
#include "cpu/isa.h"
#include "cpu/panel_engine.h"

namespace ferrite {

absl::StatusOr<std::unique_ptr<MatmulEngine>> MatmulEngine::Create(ComputeType weights,
                                                                   bool deterministic,
                                                                   ThreadPool* pool) {
  if (weights == ComputeType::kBf16 && CpuMultipliesBf16() && !deterministic) {
    return DnnlEngine::Create(weights, pool);
  }
  return std::make_unique<PanelEngine>(weights, BestIsa(), pool);
}

}  // namespace ferrite

#include "core/training/partner_frames.h"

#include <algorithm>
#include <set>

#include "distributed/collective_call.h"

namespace muster::training {

bool PartnerFrames::are_exchanged(const models::Model& model, const batch::GlobalBatch& global) {
  for (int64_t m = 0; m < global.presence.size(1); ++m)
    if (model.encoder(m) != nullptr) return true;
  return false;
}

PartnerFrames::PartnerFrames(const models::Model& model, const batch::BatchReader& reader,
                             const batch::GlobalBatch& global, const std::vector<models::HardNegatives>& partners,
                             int64_t begin, distributed::Communicator& communicator)
    : model_(model), reader_(reader), global_(global), communicator_(communicator) {
  first_row_.push_back(0);
  for (const int64_t count : global.row_counts) first_row_.push_back(first_row_.back() + count);
  for (const auto& list : partners) {
    lists_.push_back({list.modality, model.encoder(list.modality) != nullptr, {}, {}, {}, {}});
    lists_.back().partner.assign(global.size(), -1);
    std::copy(list.batch_index.begin(), list.batch_index.end(), lists_.back().partner.begin() + begin);
  }
}

int64_t PartnerFrames::frames(int64_t modality, int64_t row) const {
  return model_.encoder(modality)->frames_of(reader_.length(modality, global_.samples[row]));
}

int PartnerFrames::owner_of(int64_t row) const {
  return static_cast<int>(std::upper_bound(first_row_.begin(), first_row_.end(), row) - first_row_.begin()) - 1;
}

// Global rows of `owner` that rows of `user` are paired with, each once, ascending.
std::vector<int64_t> PartnerFrames::used_by(const List& list, int user, int owner) const {
  std::set<int64_t> rows;
  for (int64_t row = first_row_[user]; row < first_row_[user + 1]; ++row)
    if (owner_of(list.partner[row]) == owner) rows.insert(list.partner[row]);
  return {rows.begin(), rows.end()};
}

void PartnerFrames::fetch(const std::vector<batch::Batch>& own) {
  const int rank = communicator_.rank(), ranks = communicator_.size();
  for (List& list : lists_) {
    if (!list.encoded) continue;
    const int64_t dim = model_.encoder(list.modality)->dim();
    // Own rows' frames, as views.
    std::vector<at::Tensor> of_row;
    for (const auto& microbatch : own) {
      const batch::Ragged& ragged = microbatch.modalities[list.modality];
      for (int64_t i = 0; i < ragged.samples(); ++i)
        of_row.push_back(ragged.values.detach().narrow(0, ragged.offsets[i], ragged.length(i)));
    }
    const auto options = model_.parameters().values().options();
    std::vector<at::Tensor> sent{at::empty({0, dim}, options)};
    std::vector<int64_t> send_counts(ranks, 0), receive_counts(ranks, 0), received_rows;
    for (int other = 0; other < ranks; ++other) {
      if (other == rank) continue;
      for (const int64_t row : used_by(list, other, rank)) {
        sent.push_back(of_row[row - global_.own.begin]);
        send_counts[other] += sent.back().size(0);
      }
      for (const int64_t row : used_by(list, rank, other)) {
        received_rows.push_back(row);
        receive_counts[other] += frames(list.modality, row);
      }
    }
    at::Tensor received = at::empty({0, dim}, options);
    if (ranks > 1) {
      const distributed::CollectiveLabel label("partners' frames");
      received = communicator_.all_to_all_rows(at::cat(sent, 0), send_counts, receive_counts);
    }
    std::vector<at::Tensor> pool{received};
    list.first.assign(global_.size(), -1);
    int64_t end = 0;
    for (const int64_t row : received_rows) {
      list.first[row] = end;
      end += frames(list.modality, row);
    }
    for (const int64_t row : used_by(list, rank, rank)) {
      list.first[row] = end;
      pool.push_back(of_row[row - global_.own.begin]);
      end += pool.back().size(0);
    }
    list.pool = at::cat(pool, 0);
    list.gradients.assign(own.size(), at::Tensor());
  }
}

std::vector<batch::Ragged> PartnerFrames::of_microbatch(size_t microbatch, bool with_gradient) {
  const batch::Rows& rows = global_.own_microbatches[microbatch];
  std::vector<batch::Ragged> frames_of_lists;
  for (const List& list : lists_) {
    if (!list.encoded) {
      std::vector<int64_t> samples;
      for (int64_t row = rows.begin; row < rows.end; ++row) samples.push_back(global_.samples[list.partner[row]]);
      frames_of_lists.push_back(reader_.read_modality(list.modality, samples));
      continue;
    }
    batch::Ragged ragged;
    ragged.offsets.push_back(0);
    std::vector<at::Tensor> parts{list.pool.narrow(0, 0, 0)};
    for (int64_t row = rows.begin; row < rows.end; ++row) {
      const int64_t partner = list.partner[row], count = frames(list.modality, partner);
      parts.push_back(list.pool.narrow(0, list.first[partner], count));
      ragged.offsets.push_back(ragged.offsets.back() + count);
    }
    ragged.values = at::cat(parts, 0);
    if (with_gradient && model_.encoder(list.modality)->is_trained()) ragged.values.requires_grad_();
    frames_of_lists.push_back(std::move(ragged));
  }
  return frames_of_lists;
}

void PartnerFrames::keep_gradients(size_t microbatch, const std::vector<batch::Ragged>& leaves) {
  for (size_t list = 0; list < lists_.size(); ++list) {
    const at::Tensor& leaf = leaves[list].values;
    if (!lists_[list].encoded || !leaf.requires_grad()) continue;
    lists_[list].gradients[microbatch] = leaf.grad().defined() ? leaf.grad() : at::zeros_like(leaf);
  }
}

void PartnerFrames::give_back(std::vector<std::vector<at::Tensor>>& gradients) {
  const int rank = communicator_.rank(), ranks = communicator_.size();
  for (List& list : lists_) {
    if (!list.encoded || !model_.encoder(list.modality)->is_trained()) continue;
    const int64_t dim = model_.encoder(list.modality)->dim();
    const auto options = model_.parameters().values().options();
    // Each use by itself: from the lowest rank's to the highest's is from the lowest row's to the highest's.
    std::vector<at::Tensor> sent{at::empty({0, dim}, options)};
    std::vector<int64_t> send_counts(ranks, 0), receive_counts(ranks, 0);
    for (int owner = 0; owner < ranks; ++owner) {
      for (size_t m = 0; m < global_.own_microbatches.size(); ++m) {
        const batch::Rows& rows = global_.own_microbatches[m];
        int64_t begin = 0;
        for (int64_t row = rows.begin; row < rows.end; ++row) {
          const int64_t count = frames(list.modality, list.partner[row]);
          if (owner_of(list.partner[row]) == owner) {
            sent.push_back(list.gradients[m].narrow(0, begin, count));
            send_counts[owner] += count;
          }
          begin += count;
        }
      }
      for (int64_t row = first_row_[owner]; row < first_row_[owner + 1]; ++row)
        if (owner_of(list.partner[row]) == rank) receive_counts[owner] += frames(list.modality, list.partner[row]);
    }
    const distributed::CollectiveLabel label("partners' gradients");
    const at::Tensor received = communicator_.all_to_all_rows(at::cat(sent, 0), send_counts, receive_counts);
    int64_t begin = 0;
    for (int64_t row = 0; row < global_.size(); ++row) {
      const int64_t partner = list.partner[row];
      if (owner_of(partner) != rank) continue;
      const int64_t count = frames(list.modality, partner);
      size_t m = 0;
      while (global_.own_microbatches[m].end <= partner) ++m;
      int64_t place = 0;
      for (int64_t before = global_.own_microbatches[m].begin; before < partner; ++before)
        place += frames(list.modality, before);
      gradients[m][list.modality].narrow(0, place, count).add_(received.narrow(0, begin, count));
      begin += count;
    }
  }
}

}  // namespace muster::training

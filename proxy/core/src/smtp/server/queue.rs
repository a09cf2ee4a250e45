//! Actions that wait for the shell.

use std::collections::VecDeque;

use super::types::Action;

/// Octets of replies and content that may wait before the session stops reading.
const MAX_WAITING_BYTES: usize = 64 * 1024;
/// Actions that may wait before the session stops reading.
const MAX_WAITING_ACTIONS: usize = 64;
/// Space that a new batch of replies begins with, in octets: a pipelined group of some six replies.
const REPLY_BATCH: usize = 192;

#[derive(Debug, Default)]
pub(super) struct Queue {
    actions: VecDeque<Action>,
    waiting_bytes: usize,
}

impl Queue {
    pub(super) fn has_room(&self) -> bool {
        self.waiting_bytes < MAX_WAITING_BYTES && self.actions.len() < MAX_WAITING_ACTIONS
    }

    pub(super) fn push(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    /// Queues a reply, given in parts; it joins the reply before it if nothing stands between.
    pub(super) fn send(&mut self, parts: &[&[u8]]) {
        if !matches!(self.actions.back(), Some(Action::Send(_))) {
            self.actions.push_back(Action::Send(Vec::with_capacity(REPLY_BATCH)));
        }
        if let Some(Action::Send(bytes)) = self.actions.back_mut() {
            for part in parts {
                bytes.extend_from_slice(part);
                self.waiting_bytes += part.len();
            }
        }
    }

    /// A buffer for content: the last piece if it still waits, or else a new one. Give it back with `put_body`.
    pub(super) fn take_body(&mut self, capacity: usize) -> Vec<u8> {
        match self.actions.pop_back() {
            Some(Action::Body(content)) => {
                self.waiting_bytes = self.waiting_bytes.saturating_sub(content.len());
                content
            }
            other => {
                self.actions.extend(other);
                // A held-back CR may come in addition.
                Vec::with_capacity(capacity + 1)
            }
        }
    }

    pub(super) fn put_body(&mut self, content: Vec<u8>) {
        if !content.is_empty() {
            self.waiting_bytes += content.len();
            self.actions.push_back(Action::Body(content));
        }
    }

    pub(super) fn pop(&mut self) -> Option<Action> {
        let action = self.actions.pop_front()?;
        if let Action::Send(bytes) | Action::Body(bytes) = &action {
            self.waiting_bytes = self.waiting_bytes.saturating_sub(bytes.len());
        }
        Some(action)
    }

    pub(super) fn clear(&mut self) {
        self.actions.clear();
        self.waiting_bytes = 0;
    }
}

//! One simulated member: its machine, its kernel, and what it has heard of the others.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use proxy_common::maps::{Chain, NO_SLOT, Owner};
use proxy_common::steer::{Decision, Facts, Here, Kind, Socket, decide};

use super::kernel::{Conversation, Kernel, Tuple};
use super::world::{BITS, name};
use crate::steering::{Machine, Member, Plan, Standing};

/// What is known of a member: its newest description, or that it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    pub(super) member: Member,
    pub(super) gone: bool,
}

impl News {
    fn age(&self) -> (u64, bool, u32) {
        (self.member.generation, self.gone, self.member.revision)
    }
}

pub(super) struct Node {
    pub(super) me: Member,
    pub(super) machine: Machine,
    pub(super) kernel: Kernel,
    pub(super) plan: Option<Arc<Plan>>,
    /// When the machine will be called next.
    pub(super) timer: Option<Instant>,
    known: BTreeMap<String, News>,
}

/// A packet of a client's on its way between members.
#[derive(Debug, Clone)]
pub(super) struct Packet {
    pub(super) tuple: Tuple,
    pub(super) kind: Kind,
    /// What the client believes to be talking about; of no meaning in a SYN.
    pub(super) conversation: Conversation,
    pub(super) cookie: bool,
    /// Which of the client's connections of this tuple it is about.
    pub(super) life: u64,
    pub(super) hop_limit: u8,
    /// The member that sent it on.
    pub(super) sender: Option<usize>,
    pub(super) way: Vec<usize>,
}

impl Packet {
    fn bucket(&self) -> usize {
        usize::try_from(self.tuple >> (64 - BITS)).unwrap()
    }
}

struct Eye<'a> {
    now: Instant,
    plan: &'a Plan,
    kernel: &'a Kernel,
    packet: &'a Packet,
}

impl Facts for Eye<'_> {
    fn owner(&self) -> Owner {
        self.plan.owners[self.packet.bucket()]
    }
    fn chain(&self) -> Chain {
        self.plan.chains[self.packet.bucket()]
    }
    fn successor(&self) -> u8 {
        self.plan.successors[self.packet.bucket()]
    }
    fn socket(&self) -> Socket {
        self.kernel.socket(self.now, self.packet.tuple)
    }
    fn answers_cookie(&self) -> bool {
        self.kernel.answers_cookie(self.packet.tuple, self.packet.conversation)
    }
    fn alive(&self) -> bool {
        true
    }
    fn sender(&self) -> u8 {
        let Some(sender) = self.packet.sender.map(name) else { return NO_SLOT };
        let slot = self.plan.members.iter().position(|member| *member == sender);
        slot.map_or(NO_SLOT, |slot| u8::try_from(slot).unwrap())
    }
}

impl Node {
    pub(super) fn new(me: Member) -> Self {
        let machine = Machine::with_buckets(&me.name, BITS);
        Self { me, machine, kernel: Kernel::default(), plan: None, timer: None, known: BTreeMap::new() }
    }

    /// What is known of everybody, for a member that starts.
    pub(super) fn knowledge(&self) -> Vec<News> {
        let me = News { member: self.me.clone(), gone: false };
        self.known.values().cloned().chain([me]).collect()
    }

    /// Takes in news; the newest about each member counts.
    pub(super) fn hear(&mut self, now: Instant, news: impl IntoIterator<Item = News>) {
        for news in news.into_iter().filter(|news| news.member.name != self.me.name) {
            let older = self.known.get(&news.member.name).is_none_or(|known| known.age() < news.age());
            if older {
                self.known.insert(news.member.name.clone(), news);
            }
        }
        self.update(now);
    }

    pub(super) fn change(&mut self, now: Instant, change: impl FnOnce(&mut Member)) {
        change(&mut self.me);
        self.me.revision += 1;
        self.update(now);
    }

    fn update(&mut self, now: Instant) {
        let others = self.known.values().filter(|news| !news.gone).map(|news| news.member.clone());
        let members: Vec<_> = others.chain([self.me.clone()]).collect();
        self.machine.handle_members(now, &members).unwrap();
    }

    /// Whether it may take new connections from now on.
    pub(super) fn is_ready(&self) -> bool {
        self.me.standing == Standing::Joining && self.machine.is_settled()
    }

    pub(super) fn decide(&self, now: Instant, packet: &Packet) -> Decision {
        let Some(plan) = &self.plan else {
            return Decision::Drop(proxy_common::maps::Counter::NoOwner);
        };
        let facts = Eye { now, plan, kernel: &self.kernel, packet };
        let here = Here { slot: plan.own_slot, settling: plan.settling };
        decide(&facts, here, packet.hop_limit, packet.kind)
    }
}

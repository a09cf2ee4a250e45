//! What the clients do, and what they must find in the end.

use std::time::Duration;

use proxy_common::steer::Kind;
use rand::RngExt as _;

use super::super::client::{Client, Phase, Server};
use super::super::kernel::{Reply, Tuple};
use super::super::ms;
use super::{Event, World};
use crate::steering::Standing;

/// A living connection is answered at least so often once the changes are over.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);

impl World {
    pub(super) fn reply(&mut self, client: usize, life: u64, to: Kind, reply: Reply, from: Server) {
        let who = &mut self.clients[client];
        if who.life != life {
            return;
        }
        match (who.phase, reply) {
            (Phase::Opening(_), Reply::SynAck(conversation)) => {
                who.phase = Phase::Open { conversation, server: from };
                self.tally.opened += 1;
                self.answered.insert(client, self.now);
                self.send(client, Kind::Other);
                self.talk_later(client);
                if self.rng.random_bool(0.3) {
                    let delay = ms(self.rng.random_range(100..20_000));
                    self.after(delay, Event::Close { client, life });
                }
            }
            // Whatever it is, it is told what this client knows.
            (Phase::Open { .. }, Reply::SynAck(_)) => self.send(client, Kind::Other),
            (Phase::Open { .. }, Reply::Ack) => {
                who.unanswered = 0;
                self.answered.insert(client, self.now);
            }
            (Phase::Open { server, .. }, Reply::Reset) => self.lose(client, server),
            (Phase::Open { server, .. }, Reply::Challenge) if to == Kind::Other => {
                panic!("seed {}: {from:?} has another connection than {server:?} of {who:?}", self.seed)
            }
            _ => {}
        }
    }

    fn is_alive(&self, server: Server) -> bool {
        self.nodes.get(&server.node).is_some_and(|n| n.me.generation == server.generation)
    }

    /// The client's member died: it opens a new connection.
    fn lose(&mut self, client: usize, server: Server) {
        assert!(!self.is_alive(server), "seed {}: {server:?} lives, but {:?} is lost", self.seed, self.clients[client]);
        self.tally.lost += 1;
        self.clients[client].phase = Phase::Lost;
        self.reopen(client);
    }

    fn reopen(&mut self, client: usize) {
        let who = &mut self.clients[client];
        (who.life, who.unanswered) = (who.life + 1, 0);
        let life = who.life;
        let delay = ms(self.rng.random_range(50..3_000));
        self.after(delay, Event::Timer { client, life });
    }

    fn talk_later(&mut self, client: usize) {
        let life = self.clients[client].life;
        let delay = ms(self.rng.random_range(20..900));
        self.after(delay, Event::Timer { client, life });
    }

    pub(super) fn timer(&mut self, client: usize, life: u64) {
        let who = &mut self.clients[client];
        if who.life != life {
            return;
        }
        match who.phase {
            Phase::Closed | Phase::Lost => {
                who.phase = Phase::Opening(0);
                self.timer(client, life);
            }
            Phase::Opening(sent) => {
                who.phase = Phase::Opening(sent + 1);
                self.send(client, Kind::New);
                self.after(Client::syn_pause(sent), Event::Timer { client, life });
            }
            Phase::Open { server, .. } => {
                who.unanswered += 1;
                if who.unanswered > 12 && !self.is_alive(server) {
                    return self.lose(client, server);
                }
                self.send(client, Kind::Other);
                self.talk_later(client);
            }
        }
    }

    pub(super) fn close(&mut self, client: usize, life: u64) {
        let waits = self.rng.random_bool(0.5);
        let who = &mut self.clients[client];
        let Phase::Open { server, .. } = who.phase else { return };
        if who.life != life {
            return;
        }
        let tuple: Tuple = who.tuple;
        // The last acknowledgement was lost: the client repeats its FIN.
        self.send(client, Kind::Other);
        self.clients[client].phase = Phase::Closed;
        let now = self.now;
        if let Some(node) = self.nodes.get_mut(&server.node).filter(|n| n.me.generation == server.generation) {
            node.kernel.close(now, tuple, waits);
        }
        self.reopen(client);
    }

    /// The changes are over: every client is connected, every connection answers.
    pub(in crate::steering::simulation) fn finish(&mut self) {
        self.lossy = false;
        for client in &mut self.clients {
            if matches!(client.phase, Phase::Opening(_)) {
                client.phase = Phase::Opening(0);
            }
        }
        self.run_for(Duration::from_secs(30));
        let views: Vec<_> = self.nodes.values().map(|n| (n.machine.is_settled(), n.me.standing)).collect();
        assert!(views.iter().all(|view| view.0 && view.1 != Standing::Joining), "seed {}: {views:?}", self.seed);
        for (number, client) in self.clients.iter().enumerate() {
            match client.phase {
                Phase::Open { server, .. } if self.is_alive(server) => {
                    let silence = self.now - self.answered[&number];
                    assert!(silence < ANSWERED_WITHIN, "seed {}: {client:?} waits for {silence:?}", self.seed);
                }
                Phase::Opening(sent) => {
                    assert!(sent < 4 || self.nodes.is_empty(), "seed {}: {client:?} finds no server", self.seed)
                }
                Phase::Open { .. } | Phase::Closed | Phase::Lost => {}
            }
        }
    }
}

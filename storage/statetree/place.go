package statetree

// place puts the nodes of a tree that are in no blob yet into one that bears the tree's number.
// With more, they may be spread over several, whose numbers it gives.
func (f *Forest) place(r *root, more func() (int64, error)) error {
	f.placing.Lock()
	defer f.placing.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.known || r.link.node == nil {
		return nil
	}
	if id, _ := r.link.stored(); id == r.id {
		return nil
	}
	if id, _ := r.link.stored(); id != 0 {
		// The root is a node of another tree. A blob's root is its last node, so this one gets a copy.
		r.link.node = r.link.node.copy()
	}
	p := packing{last: r.id, more: more}
	err := p.place(r.link.node, true)
	p.finish() // after an error too: the nodes in it have their place
	if err == nil {
		r.unplaced = 0
	}
	return err
}

// packing fills blobs, children before their parents.
type packing struct {
	last   int64 // number of the blob that gets the root
	more   func() (int64, error)
	packer packer
	blob   *blob
}

func (p *packing) finish() {
	if p.blob != nil {
		p.packer.finish(p.blob)
		p.blob = nil
	}
}

// place adds a node after all below it that have no place.
func (p *packing) place(n *node, root bool) error {
	for i := range n.children {
		c := &n.children[i]
		if c.node != nil && c.node.place.Load() == nil {
			if err := p.place(c.node, false); err != nil {
				return err
			}
		}
	}
	if p.blob != nil && p.more != nil && (root || len(p.packer.body) > blobTarget) {
		p.finish()
	}
	if p.blob == nil {
		id := p.last
		if p.more != nil && !root {
			var err error
			if id, err = p.more(); err != nil {
				return err
			}
		}
		p.blob, p.packer = &blob{id: id}, packer{id: id}
	}
	n.place.Store(&place{p.blob, len(p.packer.nodes)})
	p.packer.add(n)
	return nil
}
